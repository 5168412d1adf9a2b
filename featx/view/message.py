"""What a visitor is told of an error: what happened, and nothing of where files are on the machine."""

import re
import tempfile
from pathlib import Path

# An absolute path up to its last part, at a place where no name, number or address goes on.
FOLDERS = re.compile(r"(?<![\w.:/\\~<])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"`,;()\[\]]+)+[/\\](?=[^\s/\\])")


def public(error: Exception) -> str:
    """The error's message with every folder of the machine replaced by an ellipsis."""
    text = str(error)
    for folder in (Path.cwd(), Path.home(), Path(tempfile.gettempdir())):
        if folder != folder.parent:  # the pattern would stop at a space in these
            text = text.replace(f"{folder}/", "/hidden/")
    return FOLDERS.sub("…/", text)
