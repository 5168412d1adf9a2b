"""Draws and lists the rooms of featx in docs/architecture.md, and the files of the tracing room in docs/tracing.md.

The rooms are the layers that pyproject.toml states; rows of files follow from their imports.

Run as `python docs/architecture.py` after a change of either.
"""

import ast
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
PICTURE = Path(__file__).with_suffix(".svg")
TRACING = PAGE.with_name("tracing.md")

# What is after it in the page is written here, what is before it by hand.
MARK = "<!-- written by docs/architecture.py -->\n"

WIDTH, ROW, BOX, GAP, LETTER, TOP = 760, 46, 30, 10, 8.4, 34  # pixels
STYLE = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:14px"


def layers() -> list[list[str]]:
    """The rooms, row by row from the top, as the contract of import-linter has them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r" [|:] ", row) for row in rows if row != "__main__"]


def about(room: str) -> str:
    """The first sentence of a room's docstring."""
    folder = ROOT / "featx" / room
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def files(room: str) -> list[list[str]]:
    """The files of a room, row by row from the top: each imports only files of rows below its own."""
    needs = {
        path.stem: set(re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in sorted((ROOT / "featx" / room).glob("[a-z]*.py"))
    }
    rows, left = list[list[str]](), [*needs]
    while left:
        rows.append([name for name in left if not needs[name] & {*left}])
        left = [name for name in left if needs[name] & {*left}]
    return rows[::-1]


def picture(rows: Sequence[Sequence[str]], caption: str) -> str:
    """An SVG with a box per room or file; a row may import only what is below it."""
    height = TOP + ROW * len(rows) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{STYLE}" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{GAP}" y="22" fill="#555">{caption}</text>',
    ]
    for number, row in enumerate(rows):
        lines += boxes(row, TOP + number * ROW)
    return "\n".join([*lines, "</svg>", ""])


def boxes(row: Sequence[str], y: int) -> list[str]:
    """The boxes of one row, centred, and the line beneath it."""
    widths = [len(room) * LETTER + 28 for room in row]
    x = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
    lines = [f'<path d="M{GAP} {y + ROW - 8}H{WIDTH - GAP}" stroke="#e4e4e4"/>']
    for room, width in zip(row, widths, strict=True):
        fill = "#dfe6fb" if (ROOT / "featx" / room).is_dir() else "#fff"
        lines.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="4" fill="{fill}" stroke="#4051b5"/>'
        )
        lines.append(f'<text x="{x + width / 2:.0f}" y="{y + 20}" text-anchor="middle" fill="#222">{room}</text>')
        x += width + GAP
    return lines


def table(rows: Sequence[Sequence[str]], kind: str, folder: str = "") -> str:
    """Every room, or file of a folder, with what is in it, from the top."""
    lines = [f"| `{name}` | {about(folder + name)} |" for row in rows for name in row]
    return "\n".join([f"| {kind} | holds |", "| --- | --- |", *lines, ""])


def written() -> dict[Path, str]:
    """The text of each file that this script writes."""
    rooms, traced = layers(), files("tracing")
    tables = {PAGE: table(rooms, "room"), TRACING: table(traced, "file", "tracing/")}
    guides = {page: page.read_text(encoding="utf-8").partition(MARK)[0] for page in tables}
    return {
        PICTURE: picture(rooms, "A room imports from rows below its own. Shaded: folders."),
        TRACING.with_suffix(".svg"): picture(traced, "A file of the tracing room imports from rows below its own."),
        **{page: f"{guides[page]}{MARK}\n{rows}" for page, rows in tables.items()},
    }


def main() -> None:
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
