"""Files that somebody may write to while they are read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError

State = tuple[int, int, int] | None


@contextmanager
def unchanged(files: Sequence[Path | int], name: object) -> Iterator[None]:
    """Raise CheckpointError at the end, also in the place of one raised inside, if a file has changed meanwhile.

    files: paths, which may come to stand for other files, or descriptors, which go on standing for the file that was
        opened when another takes its place. name: what the error calls them.
    """
    before = [_state(file) for file in files]

    def require() -> None:
        if [_state(file) for file in files] != before:
            raise CheckpointError(f"{name} was changed while it was read: load it again when it is written")

    try:
        yield
    except CheckpointError:
        require()
        raise
    require()


def _state(file: Path | int) -> State:
    """What changes when the file is written to, or another takes its place; None if it is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
