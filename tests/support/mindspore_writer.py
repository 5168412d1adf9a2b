"""Files as MindSpore's save_checkpoint writes them, and as it never would."""

from collections.abc import Iterable, Mapping
from zlib import crc32

import torch
from torch import Tensor

TYPES = {
    torch.bool: "Bool",
    torch.int8: "Int8",
    torch.int16: "Int16",
    torch.int32: "Int32",
    torch.int64: "Int64",
    torch.uint8: "UInt8",
    torch.uint16: "UInt16",
    torch.uint32: "UInt32",
    torch.uint64: "UInt64",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float32",
    torch.float64: "Float64",
    torch.complex64: "Complex64",
    torch.complex128: "Complex128",
}


def varint(number: int) -> bytes:
    """Protobuf's: seven bits per byte, the lowest first; negative ones as 64 bits."""
    number %= 1 << 64
    low = []
    while number >> 7:
        low.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*low, number])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_message(dimensions: Iterable[int], kind: str, content: bytes, *, packed: bool = False) -> bytes:
    one_by_one = b"".join(field(1, dimension) for dimension in dimensions)
    together = field(1, b"".join(varint(dimension) for dimension in dimensions))
    return (together if packed else one_by_one) + field(2, kind.encode()) + field(3, content)


def value(tag: str, tensor: bytes) -> bytes:
    """A Checkpoint with this one Value."""
    return field(1, field(1, tag.encode()) + field(2, tensor))


def content_of(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def values(tag: str, tensor: Tensor, *, chunk: int | None = None, packed: bool = False) -> bytes:
    """The Values of a tensor: one, or as many as chunks of so many bytes take."""
    content = content_of(tensor)
    chunk = chunk or len(content)
    parts = [content[start : start + chunk] for start in range(0, len(content), chunk)]
    kind = TYPES[tensor.dtype]
    return b"".join(value(tag, tensor_message(tensor.shape, kind, part, packed=packed)) for part in parts)


def checkpoint(state: Mapping[str, Tensor]) -> bytes:
    return b"".join(values(tag, tensor) for tag, tensor in state.items())


def with_checksum(messages: bytes) -> bytes:
    return messages + b"crc_num" + crc32(messages).to_bytes(10, "big")
