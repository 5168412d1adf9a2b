"""Whether a file of this machine is the one that it was."""

import os
from typing import NamedTuple


class Version(NamedTuple):
    """What is another one after a file was overwritten or replaced; `changed` is in nanoseconds."""

    device: int
    inode: int
    nbytes: int
    changed: int


def version_of(file: str | os.PathLike[str] | int) -> Version:
    """The version of a file, by its path or its descriptor; OSError if it is not there."""
    told = os.stat(file)
    return Version(told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
