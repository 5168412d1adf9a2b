"""What commands print to: names of files and tensors, and words of other packages, are shown and not obeyed."""

from typing import Any

from rich.console import Console
from rich.text import Text

from .errors import escaped_lines


class Terminal(Console):
    """A console that takes no text for markup or emoji, and escapes control characters; its own colours stay."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as it is shown, also in the cells of tables."""
        return super().render_str(escaped_lines(text), **options)
