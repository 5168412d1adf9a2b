"""Write docs/layouts.md: published files that load, and the layouts with their tests.

Run `python docs/layouts.py` after a change of `tests/layouts/published_files.py` or of the layouts;
`tests/docs/test_pages.py` compares the rows.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import featx
from featx.weights.layout import all_layouts

ROOT = Path(__file__).parent.parent
TESTS = ROOT / "tests" / "layouts"
# This script writes the page after this line; the text before it is written by hand.
MARK = "<!-- written by docs/layouts.py -->\n"
PAGE = Path(__file__).with_suffix(".md")
FILES_HEADER = """## Published files

| file | model | arguments | layout | removed prefix | skipped | difference |
| --- | --- | --- | --- | --- | ---: | ---: |
"""
LAYOUTS_HEADER = """
## Layouts

| layout | families | written, too | tests |
| --- | --- | --- | --- |
"""
FALLBACK = "test_published_files.py"
PREFIX = "names are without their prefix "


def file_row(name: str) -> str:
    """Return the table row of a published file, which is built, loaded and compared with its program."""
    from conftest import images, relative_difference
    from layouts.published_files import FILES

    file = FILES[name]
    saved, reference = file.build()
    with TemporaryDirectory() as folder, torch.serialization.safe_globals([*file.allowed]), torch.no_grad():
        path = Path(folder, f"weights{file.suffix}")
        file.write(saved, path)
        model = featx.create_model(
            file.model, features_only=not file.logits, checkpoint_path=path, **file.fields, **file.options
        ).eval()
        x = images(1, 3, *file.size)
        outputs = [model(x)] if file.logits else model(x)
        difference = max(map(relative_difference, outputs, reference(x)))
    report = model.load_report
    prefix = next((note.removeprefix(PREFIX) for note in report.notes if note.startswith(PREFIX)), "")
    arguments = ", ".join(f"`{field}={value!r}`" for field, value in file.options.items())
    cells = (name, f"`{file.model}`", arguments, f"`{report.layout}`", prefix and f"`{prefix}`", len(report.skipped))
    return f"| {' | '.join(map(str, cells))} | {difference:.0e} |\n"


def layout_rows() -> list[str]:
    """Return a row for each program: the families it has layouts for, and the tests that name it."""
    texts = {path.name: path.read_text() for path in sorted(TESTS.glob("test_*.py"))}
    rows: list[str] = []
    for system in dict.fromkeys(layout.system for layout in all_layouts()):
        layouts = [layout for layout in all_layouts() if layout.system == system]
        named = [name for name, text in texts.items() if f'"{system}"' in text] or [
            name for name in texts if name == f"test_{system.partition('-')[0]}.py"
        ]
        families = ", ".join(dict.fromkeys(layout.family for layout in layouts))
        written = "yes" if any(layout.from_native for layout in layouts) else ""
        rows.append(
            f"| `{system}` | {families} | {written} | {', '.join(f'`{name}`' for name in named or [FALLBACK])} |\n"
        )
    return rows


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from layouts.published_files import FILES

    introduction = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    rows = [*map(file_row, FILES)]
    text = f"{introduction}{MARK}\n{FILES_HEADER}{''.join(rows)}{LAYOUTS_HEADER}{''.join(layout_rows())}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
