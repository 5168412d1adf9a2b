"""Read MindSpore checkpoints without MindSpore.

A file is three nested protobuf messages: a Checkpoint contains Values, a Value contains a tag and a Tensor, a Tensor
contains dimensions, a type and raw little-endian content. A tensor too large for one message takes several consecutive
Values, each with the tag and the full dimensions. The file may end in a checksum. Nothing is executed, and no tensor is
allocated before its size has been checked against the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from math import prod
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from ..errors import CheckpointError
from .protobuf import BYTES, VARINT, ByteReader, Span, damaged, fields, integers, text, unique_fields
from .state_dict_keys import StateDict

DTYPES = {
    "Bool": torch.bool,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "Complex64": torch.complex64,
    "Complex128": torch.complex128,
}
TEXT = "str"

# More than any network has. A file of tiny values would otherwise need many times its size in memory.
MOST_VALUES = 100_000
MOST_DIMENSIONS = 32

CHECKSUM, CHECKSUM_BYTES = b"crc_num", 10
CHUNK = 1 << 16  # bytes read at a time for the checksum
CIPHERS = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}

# field numbers of a Checkpoint, a Value and a Tensor
VALUE = 1
TAG, TENSOR, MAP_TENSOR = 1, 2, 3
DIMENSIONS, TYPE, CONTENT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class TensorPart:
    """A tensor or a part of one. content: position of its bytes. dimensions, dtype: those of the full tensor."""

    tag: str
    dtype: str
    dimensions: tuple[int, ...]
    content: Span


def read_mindspore(path: Path, file: BufferedReader) -> StateDict:
    """The tensors of a MindSpore `.ckpt` file by name, on the CPU.

    Scalars, such as a saved epoch, become tensors without dimensions; saved text is ignored.

    Raises:
        CheckpointError: the file has another format, is damaged or encrypted, or has a type that PyTorch lacks.
    """
    try:
        return tensors(ByteReader(file))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def tensors(data: ByteReader) -> StateDict:
    """The tensors of a file by name."""
    if not data.size:
        raise damaged("it is empty")
    refuse_encrypted(data)
    state: StateDict = {}
    tags: set[str] = set()
    for tag, parts in groupby(tensor_parts(data, (0, checked_end(data))), key=lambda tensor_part: tensor_part.tag):
        if tag in tags:
            raise damaged(f"{tag!r} is there twice")
        tags.add(tag)
        first, *others = parts
        if any((other.dtype, other.dimensions) != (first.dtype, first.dimensions) for other in others):
            raise damaged(f"the parts of {tag!r} differ in type or dimensions")
        if first.dtype != TEXT:
            state[tag] = tensor(data, [first, *others])
    if not state:
        raise damaged("it has no tensors")
    return state


def refuse_encrypted(data: ByteReader) -> None:
    cipher = CIPHERS.get(int.from_bytes(data.span(0, min(4, data.size)), "little"))
    if cipher:
        raise CheckpointError(
            f"encrypted ({cipher}), which cannot be read here: load it in MindSpore with its key (dec_key=) "
            "and save it again without one"
        )


def checked_end(data: ByteReader) -> int:
    """Position of the end of the messages; CheckpointError if the checksum after it does not match."""
    end = data.size - len(CHECKSUM) - CHECKSUM_BYTES
    if end < 0 or data.span(end, end + len(CHECKSUM)) != CHECKSUM:
        return data.size
    checksum = 0
    for start in range(0, end, CHUNK):
        checksum = crc32(data.span(start, min(start + CHUNK, end)), checksum)
    if checksum != int.from_bytes(data.span(end + len(CHECKSUM), data.size), "big"):
        raise damaged("its checksum is wrong")
    return end


def tensor_parts(data: ByteReader, checkpoint: Span) -> Iterator[TensorPart]:
    for number, (_, value) in enumerate(fields(data, checkpoint, {VALUE: (BYTES,)})):
        if number == MOST_VALUES:
            raise damaged(f"it has more than {MOST_VALUES} values")
        parts = unique_fields(fields(data, value, {TAG: (BYTES,), TENSOR: (BYTES,), MAP_TENSOR: (BYTES,)}), value)
        if TAG not in parts:
            raise damaged(f"the value at byte {value[0]} has no tag")
        tag = text(data, parts[TAG])
        if MAP_TENSOR in parts:
            raise CheckpointError(f"{tag!r} is a MapTensor, a table of keys, which no layer here has: leave it out")
        if TENSOR not in parts:
            raise damaged(f"{tag!r} has no tensor")
        yield tensor_part(data, tag, parts[TENSOR])


def tensor_part(data: ByteReader, tag: str, message: Span) -> TensorPart:
    """The tensor of a message, whose dimensions are single or packed fields."""
    dimensions: list[int] = []
    others: list[tuple[int, Span]] = []
    for number, span in fields(data, message, {DIMENSIONS: (VARINT, BYTES), TYPE: (BYTES,), CONTENT: (BYTES,)}):
        if number != DIMENSIONS:
            others.append((number, span))
            continue
        for dimension in integers(data, span):
            dimensions.append(dimension)
            if len(dimensions) > MOST_DIMENSIONS:
                raise damaged(f"{tag!r} has more than {MOST_DIMENSIONS} dimensions")
    parts = unique_fields(others, message)
    if parts.keys() != {TYPE, CONTENT}:
        raise damaged(f"{tag!r} lacks its type or its content")
    dtype = text(data, parts[TYPE])
    if dtype not in DTYPES and dtype != TEXT:
        raise CheckpointError(f"{tag!r} is of type {dtype!r}, which cannot be read; these can: {', '.join(DTYPES)}")
    return TensorPart(tag, dtype, tuple(dimensions), parts[CONTENT])


def tensor(data: ByteReader, parts: list[TensorPart]) -> Tensor:
    """Join the parts of a tensor in new memory; CheckpointError if their length does not match type and dimensions."""
    tag, dtype, shape = parts[0].tag, DTYPES[parts[0].dtype], parts[0].dimensions
    size = sum(stop - start for start, stop in (part.content for part in parts))
    if shape == (0,) and size == dtype.itemsize:
        shape = ()  # some releases write scalars with dimensions (0,)
    if min(shape, default=1) < 1 or prod(shape) * dtype.itemsize != size:
        raise damaged(f"{tag!r} has {size} bytes, which does not match {parts[0].dtype} of dimensions {shape}")
    content, position = bytearray(size), 0
    with memoryview(content) as room:
        for start, stop in (part.content for part in parts):
            data.copy(start, room[position : position + stop - start])
            position += stop - start
    if dtype == torch.bool and content.translate(None, b"\0\1"):
        raise damaged(f"{tag!r} is of type Bool, but has bytes other than 0 and 1")
    return torch.frombuffer(content, dtype=dtype).reshape(shape)
