"""NumPy's `.npz` files as tensors: a zip of arrays, read without trusting anything it says about itself.

Nothing is unpickled and nothing extracted. What the file declares is checked before memory is taken for it, so that a
small file cannot ask for much.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from torch import Tensor

from ..errors import CheckpointError, shortened
from .npy import read_array
from .state import StateDict

MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20  # bytes, of the list of members
MAX_EXPANSION = 20  # bytes of arrays over bytes of file; weights hardly compress
ALWAYS_ALLOWED = 64 << 20  # bytes of arrays, whatever the file's size

SUFFIX = ".npy"
# What zipfile raises, depending on where a file is damaged.
DAMAGED = (BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)


def read_npz(path: Path, file: IO[bytes]) -> StateDict:
    """The arrays of a `.npz` file by name, each in memory of its own.

    Big-endian arrays are turned round, arrays in column order too; two-byte arrays of an unknown type are bfloat16.
    Raises CheckpointError if the file is damaged, holds anything but numbers, or would unpack to more than 20 times its
    size (64 MiB are always allowed).
    """
    size = file.seek(0, 2)
    try:
        with ZipFile(_Guarded(file, size)) as archive:  # pyright: ignore[reportArgumentType]
            _check(archive.infolist(), size)
            return dict(_arrays(archive))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except DAMAGED as error:
        raise CheckpointError(f"{path} is not a whole .npz file ({error}): fetch or save it again") from error


class _Guarded:
    """A file of which no piece larger than the longest list of members is read at once.

    zipfile reads the list as one piece, of a length that the file itself says; arrays are asked for in small pieces.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        rest = max(self._size - self.tell(), 0)
        size = min(size, rest) if size >= 0 else rest
        if size > MAX_DIRECTORY:
            raise CheckpointError(f"its list of arrays is longer than {MAX_DIRECTORY} bytes")
        return self._file.read(size)


def _name(member: ZipInfo) -> str:
    return member.filename.removesuffix(SUFFIX)


def _check(members: list[ZipInfo], size: int) -> None:
    """Raise CheckpointError listing what is wrong with the names and the declared sizes of the members."""
    problems = list(_problems(members, size))
    if problems:
        raise CheckpointError(f"this is no safe .npz file: {'; '.join(shortened(problems))}")


def _problems(members: list[ZipInfo], size: int) -> Iterator[str]:
    if len(members) > MAX_MEMBERS:
        yield f"it lists {len(members)} arrays, more than {MAX_MEMBERS}"
    unpacked, packed = sum(m.file_size for m in members), sum(m.compress_size for m in members)
    allowed = max(MAX_EXPANSION * size, ALWAYS_ALLOWED)
    if unpacked > allowed:
        yield f"its arrays would take {unpacked} bytes, more than the {allowed} allowed for a file of {size}"
    if packed > size:
        yield f"its arrays are {packed} bytes in a file of {size}: they overlap or are cut off"
    for name, count in Counter(_name(member) for member in members).items():
        if count > 1:
            yield f"{name!r} is in it {count} times"
    for member in members:
        yield from _member_problems(member)


def _member_problems(member: ZipInfo) -> Iterator[str]:
    name = _name(member)
    parts = name.split("/")
    if not member.filename.endswith(SUFFIX):
        yield f"{member.filename!r} is no array ({SUFFIX})"
    elif (
        {"", ".", ".."} & {*parts} or not name.isprintable() or "\\" in name or member.orig_filename != member.filename
    ):
        yield f"{member.orig_filename!r} is no name of a tensor"
    if member.flag_bits & 1:
        yield f"{name!r} is encrypted"
    elif member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        yield f"{name!r} is compressed by method {member.compress_type}; expected none or deflate"


def _arrays(archive: ZipFile) -> Iterator[tuple[str, Tensor]]:
    for member in archive.infolist():
        with archive.open(member) as file:
            yield _name(member), read_array(file, member.file_size, _name(member))
