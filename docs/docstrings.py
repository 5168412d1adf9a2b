"""Shows docstrings of the house on the site: what a docstring says of an argument or a field becomes an item of a list.

A griffe extension, named in mkdocs.yml.
"""

import re
from typing import Any

import griffe

ITEM = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")


class Items(griffe.Extension):
    """Rewrites every docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The text with an item of a list per line `name: what it is` that begins a paragraph or follows a full stop."""
    lines: list[str] = []
    for line in text.split("\n"):
        begins = ITEM.match(line) if not lines or not lines[-1] or lines[-1].endswith(".") else None
        if begins and len(lines) > 1:
            if lines[-1] and not lines[-1].startswith("- "):
                lines.append("")
            names = ", ".join(f"`{name}`" for name in begins[1].split(", "))
            lines.append(f"- {names}: {begins[2]}")
        elif lines and lines[-1].startswith("- ") and line:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)
