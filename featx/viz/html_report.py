"""A self-contained HTML report with figures of several photographs."""

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ..features import Levels
from ..locks import MOMENT
from ..whole_files import alone, local, whole_file
from .figure import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".htm")

STYLE = """
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: 0.5rem 0 2rem; }
table { border-collapse: collapse; margin: 0.5rem 0 2rem; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.2rem 0.9rem; border-bottom: 1px solid #ccc; text-align: right; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
h2 { font-size: 1.1rem; margin-bottom: 0; }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A photograph's name and its figures."""

    name: str
    figures: Sequence["Figure"]


def report(title: str, facts: Iterable[str], tables: Mapping[str, Levels], sections: Iterable[Section]) -> str:
    """An HTML page: title, paragraphs, a table of levels per model, and the figures as embedded PNG data.

    All text is escaped. The page's content security policy forbids the browser to fetch anything.

    Args:
        title: the title of the page.
        facts: one paragraph each.
        tables: the levels by model name.
        sections: the figures of each photograph.
    """
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>",
        *(f"<p>{_text(fact)}</p>" for fact in facts),
        *(_table(name, levels) for name, levels in tables.items()),
        *(_section(section, title) for section in sections),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def write_report(page: str, path: Path) -> None:
    """Write a page in UTF-8. OutputError if the file cannot be written."""
    path = local(path)
    with alone(path, MOMENT), whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _table(name: str, levels: Levels) -> str:
    rows = (
        f"<tr><td>{position}</td><td>{_text(level.name)}</td><td>{level.chs}</td><td>1/{level.reduction}</td></tr>"
        for position, level in zip(levels.out_indices, levels, strict=True)
    )
    head = "<tr><th>index</th><th>level</th><th>channels</th><th>reduction</th></tr>"
    return f"<table>\n<caption>{_text(name)}</caption>\n{head}\n" + "\n".join(rows) + "\n</table>"


def _section(section: Section, title: str) -> str:
    images = (
        f'<img alt="{_text(f"{title}: {section.name}")}" src="data:image/png;base64,'
        f'{b64encode(png_of(figure)).decode()}">'
        for figure in section.figures
    )
    return f"<section>\n<h2>{_text(section.name)}</h2>\n" + "\n".join(images) + "\n</section>"


def _text(text: str) -> str:
    """Escape text for HTML. File names may contain bytes that are not valid UTF-8."""
    return escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))
