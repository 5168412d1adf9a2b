"""The console of the commands, which prints text from files and other packages without interpreting it."""

from typing import Any

from rich.console import Console
from rich.text import Text

from .errors import escaped_lines


class Terminal(Console):
    """A console that does not interpret markup or emoji codes, and escapes control characters."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The escaped text; rich also calls it for table cells."""
        return super().render_str(escaped_lines(text), **options)
