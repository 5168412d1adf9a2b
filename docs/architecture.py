"""Write the diagrams and tables of docs/architecture.md (modules) and docs/tracing.md (files of featx.tracing).

The rows of modules are the layers in pyproject.toml; the rows of files follow from their imports.

Run `python docs/architecture.py` after a change of either.
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

# This script writes the pages after this line; the text before it is written by hand.
MARK = "<!-- written by docs/architecture.py -->\n"

WIDTH, ROW, BOX, GAP, LETTER, TOP = 760, 46, 30, 10, 8.4, 34  # pixels
STYLE = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:14px"


def layers() -> list[list[str]]:
    """The rows of modules from top to bottom, as import-linter's contract lists them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [re.split(r" [|:] ", row) for row in rows if row != "__main__"]


def summary(module: str) -> str:
    """The first paragraph of a module's docstring, on one line."""
    folder = ROOT / "featx" / module
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def files(module: str) -> list[list[str]]:
    """The rows of files of a package from top to bottom: a file imports only files of rows below its own."""
    needs = {
        path.stem: set(re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in sorted((ROOT / "featx" / module).glob("[a-z]*.py"))
    }
    rows, remaining = list[list[str]](), [*needs]
    while remaining:
        rows.append([name for name in remaining if not needs[name] & {*remaining}])
        remaining = [name for name in remaining if needs[name] & {*remaining}]
    return rows[::-1]


def draw(rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return an SVG diagram with a box per module or file; each imports only from rows below its own."""
    height = TOP + ROW * len(rows) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{STYLE}" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{GAP}" y="22" fill="#555">{caption}</text>',
    ]
    for number, row in enumerate(rows):
        lines += row_boxes(row, TOP + number * ROW)
    return "\n".join([*lines, "</svg>", ""])


def row_boxes(row: Sequence[str], y: int) -> list[str]:
    """Return the SVG elements of one row: centered boxes and the line below them."""
    widths = [len(module) * LETTER + 28 for module in row]
    x = (WIDTH - sum(widths) - GAP * (len(row) - 1)) / 2
    lines = [f'<path d="M{GAP} {y + ROW - 8}H{WIDTH - GAP}" stroke="#e4e4e4"/>']
    for module, width in zip(row, widths, strict=True):
        fill = "#dfe6fb" if (ROOT / "featx" / module).is_dir() else "#fff"
        lines.append(
            f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="4" fill="{fill}" stroke="#4051b5"/>'
        )
        lines.append(f'<text x="{x + width / 2:.0f}" y="{y + 20}" text-anchor="middle" fill="#222">{module}</text>')
        x += width + GAP
    return lines


def table(rows: Sequence[Sequence[str]], kind: str, folder: str = "") -> str:
    """Return a Markdown table of the modules, or files of a folder, and the summaries of their docstrings."""
    lines = [f"| `{name}` | {summary(folder + name)} |" for row in rows for name in row]
    return "\n".join([f"| {kind} | description |", "| --- | --- |", *lines, ""])


def render() -> dict[Path, str]:
    """Return the text of each file that this script writes."""
    modules, tracing_rows = layers(), files("tracing")
    tables = {PAGE: table(modules, "module"), TRACING: table(tracing_rows, "file", "tracing/")}
    introductions = {page: page.read_text(encoding="utf-8").partition(MARK)[0] for page in tables}
    return {
        PICTURE: draw(modules, "A module imports only from rows below its own. Shaded: packages."),
        TRACING.with_suffix(".svg"): draw(tracing_rows, "A file imports only from rows below its own."),
        **{page: f"{introductions[page]}{MARK}\n{rows}" for page, rows in tables.items()},
    }


def main() -> None:
    for path, text in render().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
