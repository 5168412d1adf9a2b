"""One array in NumPy's `.npy` format as a tensor, read without trusting what it says about itself.

Its description is matched, not evaluated, and must agree with the bytes that are there before memory is taken.
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import re
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING

from ..errors import CheckpointError

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
