"""Pickles and files of PyTorch, written opcode by opcode."""

import pickle
import struct

import torch
from hostile import rewritten, saved


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def call(function: str, *args: bytes) -> bytes:
    return b"c" + function.encode() + b"\n(" + b"".join(args) + b"tR"


def named(value: bytes, name: bytes = text("a")) -> bytes:
    """A dictionary with the value."""
    return b"}" + name + value + b"s"


def tuples(depth: int) -> bytes:
    """Pairs in pairs: about five bytes for each doubling of the number of values."""
    return text("x") + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(depth))


def storage(values: int = 2, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(values) + b"tQ"


def of_storage(place: bytes) -> bytes:
    """The arguments of a vector of two values."""
    return place + b"K\0" + b"K\2\x85" + b"K\1\x85" + b"\x89" + call("collections\nOrderedDict")


def tensor(place: bytes = storage()) -> bytes:
    return call("torch._utils\n_rebuild_tensor_v2", of_storage(place))


def with_attribute(name: str, value: bytes) -> bytes:
    classes = b"ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n"
    arguments = b"(" + of_storage(storage()) + b"t"
    return call("torch._tensor\n_rebuild_from_type_v2", classes, arguments, named(value, text(name)))


def zipped(program: bytes) -> bytes:
    """A PyTorch file of two floats, with another program."""
    whole = saved({"a": torch.ones(2)})
    return rewritten(whole, lambda name, data: b"\x80\2" + program + b"." if name.endswith("/data.pkl") else data)


def legacy(
    program: bytes, keys: bytes = b"]" + text("0") + b"a", values: bytes = struct.pack("<qff", 2, 1, 1)
) -> bytes:
    """The same as a file of PyTorch before 1.6, where a storage has a sixth entry."""
    program = program.replace(text("cpu") + integer(2) + b"tQ", text("cpu") + integer(2) + b"NtQ")
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return header + b"\x80\2" + program + b"." + b"\x80\2" + keys + b"." + values
