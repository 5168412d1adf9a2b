"""Check the pickles in PyTorch's files with an abstract interpreter before torch.load runs them.

torch.load(weights_only=True) does not run untrusted code, but it allocates memory, hashes keys and calls functions as
the pickle says. The interpreter builds only plain values, and rejects opcodes and calls that torch.save does not write.
It supports the opcodes of torch.load: https://docs.python.org/3/library/pickletools.html.
"""

import pickle
import struct
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ..errors import LONGEST, CheckpointError
from .npz import ALWAYS_ALLOWED, MAX_EXPANSION
from .pickle_calls import (
    DICTIONARIES,
    NAMESPACE,
    REBUILD_FROM_TYPE,
    STORAGE,
    TENSOR_CALLS,
    CallResult,
    Global,
    find_global,
    is_allowed_call,
    is_result_of,
    item_size,
    overriding_attribute,
)

MOST_OPCODES = 2_000_000  # opcodes, which torch.load runs in a second or two; a state dict has about thirty per tensor
LONGEST_LINE, LONGEST_TEXT = 256, 16 << 20  # bytes
LONGEST_KEY, MOST_IN_KEY = 1024, 100  # characters, and values in a tuple
LARGEST_KEY = 2**61 - 2  # larger ints may have equal hashes
# Upper bounds of the memory in bytes for an opcode, a byte of text, a container or tensor, a tuple as a key, whose hash
# takes time and may collide, and an item of a container that a call copies.
OPCODE, TEXT, OBJECT, TUPLE_KEY, COPIED_ITEM = 32, 4, 400, 1 << 16, 128

INT, UINT, SHORT, FLOAT = (struct.Struct(code) for code in ("<i", "<I", "<H", ">d"))
TAR = slice(257, 262)  # position of the magic bytes of a tar archive
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
UNDERFLOW = "its pickle reads values that it does not have"


def check_pickles(path: Path, file: IO[bytes], records: Mapping[str, int] | None) -> bool:
    """Check the pickles of a PyTorch file.

    Args:
        path: the file's path, for messages.
        file: the opened file; its position is reset to the start.
        records: size in bytes of each record of a zip archive (PyTorch 1.6 or later); None for the older format, a
            sequence of pickles and values.

    Returns:
        Whether the file holds an `argparse.Namespace`, which torch.load does not read by default.

    Raises:
        CheckpointError: torch.save does not write such pickles, or they need too much memory.
    """
    size = file.seek(0, 2)
    file.seek(0)
    try:
        if records is not None:
            data = _record(file)
            interpreter = PickleInterpreter(BytesIO(data), len(data), size)
            interpreter.run()
            interpreter.require_storages()
            interpreter.require_records(records)
        else:
            interpreter = PickleInterpreter(file, size, size)
            _check_legacy(interpreter)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error.__cause__
    file.seek(0)
    return NAMESPACE in interpreter.globals


def _record(file: IO[bytes]) -> bytes:
    import torch

    try:  # the record that torch.load reads, in case zip readers disagree
        return torch._C.PyTorchFileReader(file).get_record("data.pkl")
    except RuntimeError as error:
        raise _damaged(str(error).partition("\n")[0]) from error


def _check_legacy(interpreter: "PickleInterpreter") -> None:
    if interpreter.file.read(TAR.stop)[TAR] == b"ustar":  # PyTorch 0.1
        raise _unsupported("a tar archive")
    interpreter.file.seek(0)
    if interpreter.run() != LEGACY_MAGIC:
        raise _damaged("it does not begin as PyTorch's files do")
    for _ in ("version", "machine", "object"):
        interpreter.run()
    keys = interpreter.run()
    interpreter.require_storages({key for key in keys if isinstance(key, str)} if isinstance(keys, list) else set())


def more_than_tensors(what: str = "") -> str:
    """Message for a file that is not a plain dictionary of tensors. what: the class that it contains."""
    content = f"tensors ({what if what.isprintable() else repr(what)})" if what else "tensors, or is damaged"
    return (
        f"holds more than {content}; it was not read, because reading it could run code. If you trust it, read it with "
        "torch.load(path, weights_only=False) and save its state_dict() as safetensors"
    )


def _damaged(how: str) -> CheckpointError:
    return CheckpointError(f"is not a whole PyTorch file ({how[:LONGEST]}): fetch or save it again")


def _unsupported(what: str = "") -> CheckpointError:
    return CheckpointError(more_than_tensors(what))


def is_key(key: Any) -> bool:
    """Whether a dictionary key is allowed: a short string, a number, None, or a small tuple of these."""
    if isinstance(key, CallResult):
        return key.by.from_user
    if type(key) is not tuple:
        short = len(key) <= LONGEST_KEY if isinstance(key, str) else key is None or isinstance(key, int | float)
        return short and not (isinstance(key, int) and abs(key) > LARGEST_KEY)
    tuples, left = [key], MOST_IN_KEY
    while tuples and left >= 0:
        items = tuples.pop()
        left -= len(items)
        nested = [item for item in items[:MOST_IN_KEY] if type(item) is tuple]
        if not all(type(item) is tuple or is_key(item) for item in items[:MOST_IN_KEY]):
            return False
        tuples += nested
        left -= len(nested)
    return left >= 0


class PickleInterpreter:
    """Abstract interpreter of consecutive pickles: it tracks types, memory and storages without building objects.

    file: a file at the first pickle. length: its size in bytes. size: size of the checkpoint in bytes.
    """

    most_text: int = LONGEST_TEXT

    def __init__(self, file: IO[bytes], length: int, size: int) -> None:
        self.file, self.length, self.size = file, length, size
        self.budget, self.opcodes = max(MAX_EXPANSION * size, ALWAYS_ALLOWED), 0
        self.storages: dict[str, int] = {}
        self.globals: set[str] = set()
        self.longest_text = 0
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.metastack: list[list[Any]] = []

    def handlers(self) -> "Mapping[bytes, Callable[[Any], object]]":
        """The method of each opcode."""
        return OPCODES

    def damaged(self, how: str) -> CheckpointError:
        return _damaged(how)

    def unsupported(self, what: str = "") -> CheckpointError:
        return _unsupported(what)

    def run(self) -> Any:
        """Interpret one pickle and return its value, in which only plain values are real."""
        self.memo, self.stack, self.metastack = {}, [], []
        read, handlers = self.file.read, self.handlers()
        while (opcode := read(1)) != pickle.STOP:
            if opcode not in handlers:
                raise self.unsupported() if opcode else self.damaged("it ends too early")
            self.opcodes += 1
            self.budget -= OPCODE
            if self.opcodes > MOST_OPCODES or self.budget < 0:
                self.spend(0)
            handlers[opcode](self)
        return self.pop()

    def spend(self, cost: int) -> None:
        """Deduct memory from the budget; CheckpointError if the memory or the number of opcodes exceeds its limit."""
        self.budget -= cost
        if self.opcodes > MOST_OPCODES or self.budget < 0:
            raise CheckpointError(
                f"has {self.size} bytes and would build far more, or more than {MOST_OPCODES} objects, beside its "
                "tensors: save its state_dict() alone"
            )

    def require_storages(self, filled: set[str] | None = None) -> None:
        """Raise CheckpointError if storages exceed the file, or lack values. filled: keys of storages with values."""
        total = sum(self.storages.values())
        if total > self.size:
            raise self.damaged(f"its values would take {total} bytes of {self.size}")
        if filled is not None and not self.storages.keys() <= filled:
            raise self.damaged("it has no values for some of its tensors")

    def require_records(self, records: Mapping[str, int]) -> None:
        """Raise CheckpointError if a record is shorter than its storage: older PyTorch reads past the end of it."""
        if short := [key for key, size in self.storages.items() if records.get(f"data/{key}", 0) < size]:
            raise self.damaged(f"its records {short[:3]} are shorter than their tensors")

    def pop(self) -> Any:
        if not self.stack:
            raise self.damaged(UNDERFLOW)
        return self.stack.pop()

    def last(self) -> Any:
        if not self.stack:
            raise self.damaged(UNDERFLOW)
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_object(self, value: Any) -> None:
        self.spend(OBJECT)
        self.stack.append(value)

    def mark(self) -> None:
        self.spend(OBJECT)
        self.metastack.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Pop the items pushed since the last mark."""
        if not self.metastack:
            raise self.damaged(UNDERFLOW)
        items, self.stack = self.stack, self.metastack.pop()
        return items

    def bytes(self, count: int) -> bytes:
        if count > min(self.most_text, self.length - self.file.tell()):
            raise self.damaged(f"{count} bytes of text are declared")
        self.spend(TEXT * count)
        self.longest_text = max(self.longest_text, count)
        return self.file.read(count)

    def number(self, layout: struct.Struct) -> Any:
        data = self.file.read(layout.size)
        if len(data) < layout.size:
            raise self.damaged("it ends too early")
        return layout.unpack(data)[0]

    def byte(self) -> int:
        data = self.file.read(1)
        if not data:
            raise self.damaged("it ends too early")
        return data[0]

    def text(self, count: int) -> None:
        self.push(self.bytes(count).decode("utf-8", "replace"))

    def store(self, number: int) -> None:
        self.spend(OPCODE)
        self.memo[number] = self.last()

    def recall(self, number: int) -> None:
        if number not in self.memo:
            raise self.damaged(UNDERFLOW)
        self.push(self.memo[number])

    def pack(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, items: list[Any]) -> None:
        if type(target := self.last()) is not list:
            raise self.unsupported()
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        keys, values, target = items[::2], items[1::2], self.last()
        if len(keys) != len(values) or not (type(target) is dict or is_result_of(target, *DICTIONARIES)):
            raise self.unsupported()
        self.check_keys(keys)
        if type(target) is dict:
            target.update(zip(keys, values, strict=True))

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Raise CheckpointError for keys that are not allowed in a dictionary."""
        for key in keys:
            self.spend(TUPLE_KEY if type(key) is tuple else OBJECT)
            if not is_key(key):
                raise CheckpointError(
                    f"has an invalid dictionary key ({type(key).__name__}): expected strings of at most {LONGEST_KEY} "
                    "characters, or numbers; save its state_dict() alone"
                )

    def push_global(self) -> None:
        module, name = (self.file.readline(LONGEST_LINE).decode("utf-8", "replace") for _ in range(2))
        if not (module.endswith("\n") and name.endswith("\n")):
            raise self.damaged("it names no class")
        self.push_named(module[:-1], name[:-1])

    def find(self, module: str, name: str) -> Global | None:
        """The class or function of that name; None if such files must not use it."""
        return find_global(module, name)

    def push_named(self, module: str, name: str) -> None:
        target = self.find(module, name)
        if target is None:
            raise self.unsupported(f"{module}.{name}".removeprefix("builtins."))
        self.globals.add(target.name)
        self.push_object(target)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not is_allowed_call(function, args, self.check_keys):
            raise self.unsupported(function.name if isinstance(function, Global) else "")
        for arg in args:
            self.spend_copy(arg)
        self.push_object(CallResult(args[0] if function.name == REBUILD_FROM_TYPE else function))

    def spend_copy(self, value: Any) -> None:
        """Deduct the memory of a copy of an argument or state, which pickles can repeat with an opcode each."""
        if isinstance(value, dict | list | tuple):
            self.spend(COPIED_ITEM * len(value))
        elif isinstance(value, str) or is_result_of(value, "_codecs.encode"):
            self.spend(len(value) if isinstance(value, str) else self.longest_text)

    def build(self) -> None:
        """Check the state set on an object: attributes, or the values of a tensor in an old file."""
        state, target = self.pop(), self.last()
        self.spend_copy(state)
        if not (self.has_attributes(target, state) or (isinstance(target, CallResult) and target.by.from_user)):
            raise self.unsupported(target.by.name if isinstance(target, CallResult) else "")

    def has_attributes(self, target: Any, state: Any) -> bool:
        """Whether torch.save writes such a state of the object."""
        if is_result_of(target, "collections.OrderedDict"):
            return not overriding_attribute(state, OrderedDict)
        if is_result_of(target, NAMESPACE):
            return not overriding_attribute(state, Namespace)
        return is_result_of(target, *TENSOR_CALLS) and type(state) is tuple

    def push_storage(self) -> None:
        """Push a storage, described by ("storage", class, key, device, length[, view, in old files])."""
        description = self.pop()
        if type(description) is not tuple or len(description) not in (5, 6) or description[0] != "storage":
            raise self.unsupported()
        _, kind, key, _, count, *_ = description
        size = item_size(kind)
        if size is None or type(count) is not int or count < 0 or not isinstance(key, str):
            raise self.damaged("it describes invalid values")
        self.storages[key] = max(self.storages.get(key, 0), count * size)
        self.push_object(STORAGE)


OPCODES: dict[bytes, Callable[[PickleInterpreter], object]] = {
    pickle.PROTO: lambda p: p.byte(),
    pickle.MARK: PickleInterpreter.mark,
    pickle.NONE: lambda p: p.push(None),
    pickle.NEWTRUE: lambda p: p.push(True),
    pickle.NEWFALSE: lambda p: p.push(False),
    pickle.BININT: lambda p: p.push(p.number(INT)),
    pickle.BININT1: lambda p: p.push(p.byte()),
    pickle.BININT2: lambda p: p.push(p.number(SHORT)),
    pickle.LONG1: lambda p: p.push(int.from_bytes(p.bytes(p.byte()), "little", signed=True)),
    pickle.BINFLOAT: lambda p: p.push(p.number(FLOAT)),
    pickle.BINUNICODE: lambda p: p.text(p.number(UINT)),
    pickle.SHORT_BINSTRING: lambda p: p.text(p.byte()),
    pickle.EMPTY_TUPLE: lambda p: p.push(()),
    pickle.EMPTY_LIST: lambda p: p.push_object([]),
    pickle.EMPTY_DICT: lambda p: p.push_object({}),
    pickle.EMPTY_SET: lambda p: p.push_object(CallResult(Global("builtins.set"))),
    pickle.TUPLE: lambda p: p.push(tuple(p.marked())),
    pickle.TUPLE1: lambda p: p.pack(1),
    pickle.TUPLE2: lambda p: p.pack(2),
    pickle.TUPLE3: lambda p: p.pack(3),
    pickle.APPEND: lambda p: p.extend([p.pop()]),
    pickle.APPENDS: lambda p: p.extend(p.marked()),
    pickle.SETITEM: lambda p: p.set_items([p.pop(), p.pop()][::-1]),
    pickle.SETITEMS: lambda p: p.set_items(p.marked()),
    pickle.BINPUT: lambda p: p.store(p.byte()),
    pickle.LONG_BINPUT: lambda p: p.store(p.number(UINT)),
    pickle.BINGET: lambda p: p.recall(p.byte()),
    pickle.LONG_BINGET: lambda p: p.recall(p.number(UINT)),
    pickle.GLOBAL: PickleInterpreter.push_global,
    pickle.REDUCE: PickleInterpreter.call,
    pickle.NEWOBJ: PickleInterpreter.call,
    pickle.BUILD: PickleInterpreter.build,
    pickle.BINPERSID: PickleInterpreter.push_storage,
}
