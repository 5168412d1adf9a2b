"""NumPy's `.npz` files as tensors: a zip of arrays, read without trusting anything it says about itself.

Nothing is unpickled and nothing extracted. What the file declares is checked before memory is taken for it, so that a
small file cannot ask for much. The description of an array is matched, not evaluated.
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from torch import Tensor

from ..errors import CheckpointError, shortened

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_HEADER = 10_000  # bytes, of an array's description; as in NumPy
MAX_DIMS = 32

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{\s*'descr':\s*(?P<dtype>'[^']*'|\[[^{}]*\]),\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>[\dL,\s]*)\),?\s*\}\s*",
)
NUMBERS = re.compile(r"(\d+L?(,\s*\d+L?)*,?)?\s*")  # L as Python 2 wrote it
# bfloat16 is unknown to NumPy, which writes it as two bytes of anything
DTYPES = {"f2": "f2", "f4": "f4", "f8": "f8", "i1": "i1", "i2": "i2", "i4": "i4", "i8": "i8", "u1": "u1", "b1": "u1"}
BFLOAT16 = "V2"
MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20  # bytes, of the list of members
MAX_EXPANSION = 20  # bytes of arrays over bytes of file; weights hardly compress
ALWAYS_ALLOWED = 64 << 20  # bytes of arrays, whatever the file's size
SUFFIX = ".npy"
# What zipfile raises, depending on where a file is damaged.
DAMAGED = (BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)


@dataclass(frozen=True, slots=True)
class Header:
    """What an array says about itself: dtype as NumPy writes it, order of its axes, shape, bytes before the data."""

    dtype: str
    fortran: bool
    shape: tuple[int, ...]
    length: int


def read_array(file: IO[bytes], size: int, name: str) -> "Tensor":
    """The array that the next `size` bytes are, in memory of its own; CheckpointError calls it `name`."""
    header = _header(file, name)
    dtype, kind = _dtype(header.dtype, name)
    needed, given = prod(header.shape) * dtype.itemsize, size - header.length
    if len(header.shape) > MAX_DIMS or prod(max(side, 1) for side in header.shape) >= 1 << 60:
        raise CheckpointError(f"{name!r} says that its shape is {_short(header.shape)}: no tensor has it")
    if needed != given:
        raise CheckpointError(
            f"{name!r} says that it is {header.dtype} of shape {_short(header.shape)}, which takes {needed} bytes, "
            f"but {given} bytes are there"
        )
    return _tensor(_data(file, needed, name).view(dtype), header, kind)


def _header(file: IO[bytes], name: str) -> Header:
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise CheckpointError(f"{name!r} is no array of NumPy's format 1, 2 or 3; it begins with {start!r}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"the description of {name!r} would be {length} bytes long, more than {MAX_HEADER}")
    text = file.read(length)
    found = HEADER.fullmatch(text)
    shape = found["shape"].decode("ascii") if found else ""
    if found is None or not NUMBERS.fullmatch(shape):
        raise CheckpointError(f"{name!r} describes itself as {text[:200]!r}, which is not how NumPy describes arrays")
    sides = tuple(int(side.strip(" L")) for side in shape.split(",") if side.strip())
    dtype = found["dtype"].decode("latin1").strip("'")
    return Header(dtype, found["fortran"] == b"True", sides, 8 + width + length)


def _dtype(text: str, name: str) -> "tuple[np.dtype, str]":
    """NumPy's type of the bytes of an array, and the code of what they are; CheckpointError if that is no number."""
    import numpy as np

    order, code = text[:1], text[1:]
    if code == "O":
        raise CheckpointError(f"{name!r} holds Python objects; they were not read, because reading them could run code")
    if code == BFLOAT16:
        return np.dtype("<u2"), code
    if order not in ("<", ">", "=", "|") or code not in DTYPES:
        known = [*DTYPES, f"{BFLOAT16} (bfloat16)"]
        raise CheckpointError(f"{name!r} is of the type {text[:100]!r}; expected one of {known}")
    return np.dtype(order + DTYPES[code]), code


def _data(file: IO[bytes], size: int, name: str) -> "np.ndarray":
    """The bytes that follow, all there are; CheckpointError unless there are so many."""
    import numpy as np

    data = np.empty(size, np.uint8)
    view, done = data.data, 0
    while done < size and (piece := file.read(min(size - done, 1 << 20))):
        view[done : done + len(piece)] = piece
        done += len(piece)
    if done < size or file.read(1):  # the checksum is compared at the end
        raise CheckpointError(f"{name!r} is cut off after {done} of {size} bytes")
    return data


def _tensor(data: "np.ndarray", header: Header, kind: str) -> "Tensor":
    import torch

    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    flat = torch.from_numpy(native.view("int16") if kind == BFLOAT16 else native)
    if kind == "b1":
        flat = flat != 0  # bytes that are neither 0 nor 1 would be no booleans
    if kind == BFLOAT16:
        flat = flat.view(torch.bfloat16)
    if not header.fortran:
        return flat.reshape(header.shape)
    return flat.reshape(header.shape[::-1]).permute(*reversed(range(len(header.shape)))).contiguous()


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else f"{text[:80]}…"


def read_npz(path: Path, file: IO[bytes]) -> dict[str, Tensor]:
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
