"""Detection of changes to local files."""

import os
from typing import NamedTuple


class Version(NamedTuple):
    """Identifies a version of a file; it differs after the file was overwritten or replaced.

    Attributes:
        device: of the file system.
        inode: of the file.
        nbytes: size in bytes.
        changed: modification time in nanoseconds.
    """

    device: int
    inode: int
    nbytes: int
    changed: int


def version_of(file: str | os.PathLike[str] | int) -> Version:
    """The version of a file, given by path or descriptor; OSError if it does not exist."""
    status = os.stat(file)
    return Version(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
