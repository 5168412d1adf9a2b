"""Read pickles of NumPy arrays, such as the `.pkl` files of Detectron2's model zoo, without unpickling them.

The interpreter of `pickle_limits` runs the program. It builds only numbers, text, lists, dictionaries and arrays, and
the only calls that it knows are those with which NumPy describes an array and its type. Arrays are made from bytes of
the file, so that their memory is bounded by its size. Files of Python 2 and of protocols 2 to 5 are read.
https://numpy.org/doc/stable/reference/generated/numpy.ndarray.__reduce__.html
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LONGEST, CheckpointError
from .npz import MAX_DIMS, NpyHeader, as_tensor, numeric_dtype
from .pickle_calls import LATIN, Global
from .pickle_limits import OBJECT, OPCODES, UINT, PickleInterpreter

ULONG = struct.Struct("<Q")
CORES = ("numpy.core", "numpy._core")  # before and since NumPy 2
ARRAY, DTYPE, ENCODE, DICTIONARY = "numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"
NO_BYTES = "__builtin__.bytes"  # protocol 2 writes bytes without a value as a call
EMPTY = {f"{core}.multiarray._reconstruct" for core in CORES}
SCALAR = {f"{core}.multiarray.scalar" for core in CORES}
BUFFER = {f"{core}.numeric._frombuffer" for core in CORES}
ALLOWED = {ARRAY, DTYPE, ENCODE, DICTIONARY, NO_BYTES, *EMPTY, *SCALAR, *BUFFER}
ORDERS = ("<", ">", "=", "|")


@dataclass(slots=True)
class DType:
    """A type of numbers, which gets its byte order after it was made."""

    code: str
    order: str = "="


@dataclass(slots=True)
class Array:
    """An array, which gets its values after it was made."""

    tensor: Tensor | None = None


def read_numpy_pickle(path: Path, file: BufferedReader) -> Any:
    """The object in a pickle of plain values and NumPy arrays, with tensors in place of the arrays in dictionaries.

    Raises:
        CheckpointError: the file is damaged, has other objects, or would need far more memory than it has bytes.
    """
    size = file.seek(0, 2)
    file.seek(0)
    try:
        content = NumpyInterpreter(file, size, size).run()
        _put_tensors(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error.__cause__
    return content


def _put_tensors(content: Any) -> None:
    """Replace arrays by their tensors, in place, in a dictionary and in those in it."""
    pending, seen = [content], set()
    while pending:
        entries = pending.pop()
        if type(entries) is not dict or id(entries) in seen:
            continue
        seen.add(id(entries))
        for name, value in entries.items():
            if isinstance(value, Array):
                entries[name] = _tensor_of(value)
        pending += entries.values()


def _tensor_of(array: Array) -> Tensor:
    if array.tensor is None:
        raise _damaged("an array has no values")
    return array.tensor


def _damaged(how: str) -> CheckpointError:
    return CheckpointError(f"is not a whole pickle of NumPy arrays ({how[:LONGEST]}): fetch or save it again")


class NumpyInterpreter(PickleInterpreter):
    """Interpreter of a pickle that builds its plain values and arrays, and refuses everything else."""

    most_text = 1 << 62  # the values of an array are text here, as long as the file has them

    def handlers(self) -> Mapping[bytes, Callable[[Any], object]]:
        return HANDLERS

    def damaged(self, how: str) -> CheckpointError:
        return _damaged(how)

    def unsupported(self, what: str = "") -> CheckpointError:
        content = f"NumPy arrays ({what if what.isprintable() else repr(what)})" if what else "arrays, or is damaged"
        return CheckpointError(
            f"holds more than {content}; it was not read, because reading it could run code. If you trust it, read it "
            "with pickle.load and save its arrays with numpy.savez"
        )

    def find(self, module: str, name: str) -> Global | None:
        full = f"{module}.{name}"
        return Global(full) if full in ALLOWED else None

    def push_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise self.damaged("it names no class")
        self.push_named(module, name)

    def memoize(self) -> None:
        self.store(len(self.memo))

    def latin_text(self, count: int) -> None:
        """Push a string of Python 2, whose bytes are text or the values of an array."""
        self.push(self.bytes(count).decode("latin1"))

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        name = function.name if isinstance(function, Global) else ""
        if type(args) is not tuple or not name:
            raise self.unsupported(name)
        self.spend(OBJECT)
        value = self.result(name, args)
        if value is None:
            raise self.unsupported(name)
        self.push(value)

    def result(self, name: str, args: tuple[Any, ...]) -> Any:
        """The value of a call; None if NumPy does not write such a call."""
        if name == DICTIONARY and not args:
            return {}
        if name == NO_BYTES and not args:
            return b""
        if name == ENCODE and len(args) == 2 and isinstance(args[0], str) and args[1] in LATIN:
            return self.values(args[0])
        if name == DTYPE and args and isinstance(args[0], str):
            return DType(args[0])
        if name in EMPTY and args and args[0] == Global(ARRAY):
            return Array()
        if name in SCALAR and len(args) == 2:
            return Array(self.tensor((), args[0], False, args[1]))
        if name in BUFFER and len(args) == 4:
            return Array(self.tensor(args[2], args[1], args[3] == "F", args[0]))
        return None

    def build(self) -> None:
        """Set the byte order of a type, or the values of an array."""
        state, target = self.pop(), self.last()
        if isinstance(target, DType) and type(state) is tuple and len(state) > 2 and state[1] in ORDERS:
            target.order = state[1]
        elif isinstance(target, Array) and type(state) is tuple and len(state) == 5:
            target.tensor = self.tensor(*state[1:])
        else:
            raise self.unsupported(DTYPE if isinstance(target, DType) else ARRAY if isinstance(target, Array) else "")

    def tensor(self, shape: Any, dtype: Any, fortran: Any, content: Any) -> Tensor:
        """A tensor in new memory. content: bytes, or text of Python 2 with one byte per character."""
        import numpy as np

        if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
            raise self.damaged("it describes an array of no shape")
        if not isinstance(dtype, DType):
            raise self.damaged("it describes an array of no type")
        kind, code = numeric_dtype(f"{dtype.order}{dtype.code}", "an array")
        data = self.values(content)
        if len(shape) > MAX_DIMS or prod(max(side, 1) for side in shape) >= 1 << 60:
            raise self.damaged("it describes an array of a shape that no tensor has")
        if prod(shape) * kind.itemsize != len(data):
            raise self.damaged(f"an array of {kind} and shape {str(shape)[:80]} has {len(data)} bytes")
        self.spend(len(data))
        copied = np.frombuffer(bytearray(data), kind)
        return as_tensor(copied, NpyHeader(kind.str, bool(fortran), shape, 0), code)

    def values(self, content: Any) -> bytes:
        """The bytes of values, from bytes or from text with one byte per character."""
        if isinstance(content, str):
            self.spend(len(content))
            try:
                return content.encode("latin1")
            except UnicodeEncodeError as error:
                raise self.damaged("the values of an array are not bytes") from error
        if not isinstance(content, bytes):
            raise self.damaged("an array has no bytes for values")
        return content


HANDLERS: dict[bytes, Callable[[NumpyInterpreter], object]] = {
    **{opcode: handler for opcode, handler in OPCODES.items() if opcode != pickle.BINPERSID},
    pickle.REDUCE: NumpyInterpreter.call,
    pickle.BUILD: NumpyInterpreter.build,
    pickle.STACK_GLOBAL: NumpyInterpreter.push_stack_global,
    pickle.MEMOIZE: NumpyInterpreter.memoize,
    pickle.FRAME: lambda p: p.number(ULONG),
    pickle.SHORT_BINUNICODE: lambda p: p.text(p.byte()),
    pickle.BINUNICODE8: lambda p: p.text(p.number(ULONG)),
    pickle.SHORT_BINSTRING: lambda p: p.latin_text(p.byte()),
    pickle.BINSTRING: lambda p: p.latin_text(p.number(UINT)),
    pickle.SHORT_BINBYTES: lambda p: p.push(p.bytes(p.byte())),
    pickle.BINBYTES: lambda p: p.push(p.bytes(p.number(UINT))),
    pickle.BINBYTES8: lambda p: p.push(p.bytes(p.number(ULONG))),
    pickle.BYTEARRAY8: lambda p: p.push(p.bytes(p.number(ULONG))),
}
del HANDLERS[pickle.NEWOBJ]
