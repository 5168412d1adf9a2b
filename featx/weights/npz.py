"""Read NumPy's `.npz` files, zip archives of arrays, as tensors, without trusting what they declare.

Nothing is unpickled or extracted to disk. Declared sizes are checked before memory is allocated, so that a small file
cannot need much memory. Array headers are matched with a pattern, not evaluated.
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

MAX_HEADER = 10_000  # bytes of an array header, as in NumPy
MAX_DIMS = 32

MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{\s*'descr':\s*(?P<dtype>'[^']*'|\[[^{}]*\]),\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>[\dL,\s]*)\),?\s*\}\s*",
)
NUMBERS = re.compile(r"(\d+L?(,\s*\d+L?)*,?)?\s*")  # L as in Python 2
# NumPy lacks bfloat16 and writes it as two opaque bytes
DTYPES = {"f2": "f2", "f4": "f4", "f8": "f8", "i1": "i1", "i2": "i2", "i4": "i4", "i8": "i8", "u1": "u1", "b1": "u1"}
BFLOAT16 = "V2"
MAX_MEMBERS = 20_000
MAX_DIRECTORY = 8 << 20  # bytes of the central directory
MAX_EXPANSION = 20  # ratio of array bytes to file bytes; weights hardly compress
ALWAYS_ALLOWED = 64 << 20  # bytes of arrays that are allowed for any file size
SUFFIX = ".npy"
# Exceptions of zipfile, depending on where a file is damaged.
DAMAGED = (BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError, OverflowError)


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """Header of an array: dtype as NumPy writes it, memory order, shape, and length of the header in bytes."""

    dtype: str
    fortran: bool
    shape: tuple[int, ...]
    length: int


def read_array(file: IO[bytes], size: int, name: str) -> "Tensor":
    """Read the array in the next `size` bytes into memory. name: its name in the messages of CheckpointError."""
    header = _header(file, name)
    dtype, kind = numeric_dtype(header.dtype, name)
    needed, available = prod(header.shape) * dtype.itemsize, size - header.length
    if len(header.shape) > MAX_DIMS or prod(max(side, 1) for side in header.shape) >= 1 << 60:
        raise CheckpointError(f"{name!r} says that its shape is {_abbreviated(header.shape)}: no tensor has it")
    if needed != available:
        raise CheckpointError(
            f"{name!r} says that it is {header.dtype} of shape {_abbreviated(header.shape)}, which takes {needed} "
            f"bytes, but {available} bytes are there"
        )
    return as_tensor(_data(file, needed, name).view(dtype), header, kind)


def _header(file: IO[bytes], name: str) -> NpyHeader:
    start = file.read(8)
    if start[:6] != MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise CheckpointError(f"{name!r} is not an array of NumPy's format 1, 2 or 3; it begins with {start!r}")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"the description of {name!r} would be {length} bytes long, more than {MAX_HEADER}")
    text = file.read(length)
    match = HEADER.fullmatch(text)
    shape = match["shape"].decode("ascii") if match else ""
    if match is None or not NUMBERS.fullmatch(shape):
        raise CheckpointError(f"{name!r} describes itself as {text[:200]!r}, which is not how NumPy describes arrays")
    sides = tuple(int(side.strip(" L")) for side in shape.split(",") if side.strip())
    dtype = match["dtype"].decode("latin1").strip("'")
    return NpyHeader(dtype, match["fortran"] == b"True", sides, 8 + width + length)


def numeric_dtype(text: str, name: str) -> "tuple[np.dtype, str]":
    """NumPy's dtype to read an array with, and its type code; CheckpointError unless the type is numeric."""
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
    """Read the rest of the member; CheckpointError unless it has `size` bytes."""
    import numpy as np

    data = np.empty(size, np.uint8)
    view, done = data.data, 0
    while done < size and (piece := file.read(min(size - done, 1 << 20))):
        view[done : done + len(piece)] = piece
        done += len(piece)
    if done < size or file.read(1):  # zipfile compares the checksum at the end
        raise CheckpointError(f"{name!r} is cut off after {done} of {size} bytes")
    return data


def as_tensor(data: "np.ndarray", header: NpyHeader, kind: str) -> "Tensor":
    """A tensor of the values, which it may share. kind: the type code that `numeric_dtype` returned."""
    import torch

    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    flat = torch.from_numpy(native.view("int16") if kind == BFLOAT16 else native)
    if kind == "b1":
        flat = flat != 0  # bytes other than 0 and 1 are invalid booleans
    if kind == BFLOAT16:
        flat = flat.view(torch.bfloat16)
    if not header.fortran:
        return flat.reshape(header.shape)
    return flat.reshape(header.shape[::-1]).permute(*reversed(range(len(header.shape)))).contiguous()


def _abbreviated(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else f"{text[:80]}…"


def read_npz(path: Path, file: IO[bytes]) -> dict[str, Tensor]:
    """Read the arrays of a `.npz` file by name.

    Big-endian and column-major arrays are converted; two-byte arrays of an unknown type are bfloat16.

    Raises:
        CheckpointError: the file is damaged, contains other types than numbers, or would unpack to more than 20 times
            its size (64 MiB are always allowed).
    """
    size = file.seek(0, 2)
    try:
        with ZipFile(BoundedFile(file, size)) as archive:  # pyright: ignore[reportArgumentType]
            _check_members(archive.infolist(), size)
            return dict(_arrays(archive))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    except DAMAGED as error:
        raise CheckpointError(f"{path} is not a whole .npz file ({error}): fetch or save it again") from error


class BoundedFile:
    """A file that refuses reads larger than the largest central directory.

    zipfile reads the central directory at once, in the length that the file declares; arrays are read in small chunks.
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


def _check_members(members: list[ZipInfo], size: int) -> None:
    """Raise CheckpointError, with all problems, unless the members have safe names, sizes and compression."""
    problems = list(_problems(members, size))
    if problems:
        raise CheckpointError(f"this is not a safe .npz file: {'; '.join(shortened(problems))}")


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
        yield f"{member.filename!r} is not an array ({SUFFIX})"
    elif (
        {"", ".", ".."} & {*parts} or not name.isprintable() or "\\" in name or member.orig_filename != member.filename
    ):
        yield f"{member.orig_filename!r} is not a tensor name"
    if member.flag_bits & 1:
        yield f"{name!r} is encrypted"
    elif member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        yield f"{name!r} is compressed by method {member.compress_type}; expected none or deflate"


def _arrays(archive: ZipFile) -> Iterator[tuple[str, Tensor]]:
    for member in archive.infolist():
        with archive.open(member) as file:
            yield _name(member), read_array(file, member.file_size, _name(member))
