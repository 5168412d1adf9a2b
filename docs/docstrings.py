"""Griffe extension that renders the project's docstrings: each `name: description` line becomes a list item.

mkdocs.yml enables it.
"""

import re
from typing import Any

import griffe

ITEM = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")


class DocstringItems(griffe.Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute; griffe calls this for each one."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Turn each line `name: description` that starts a paragraph or follows a sentence into a list item."""
    lines: list[str] = []
    for line in text.split("\n"):
        item = ITEM.match(line) if not lines or not lines[-1] or lines[-1].endswith(".") else None
        if item and len(lines) > 1:
            if lines[-1] and not lines[-1].startswith("- "):
                lines.append("")
            names = ", ".join(f"`{name}`" for name in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        elif lines and lines[-1].startswith("- ") and line:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)
