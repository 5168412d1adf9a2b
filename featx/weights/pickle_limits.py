"""Limits on the pickles in PyTorch's files: their programs are followed step by step before torch.load runs them.

torch.load(weights_only=True) runs no foreign code, but allocates, hashes and calls what a pickle tells it to. Here
nothing is built but plain values, and what torch.save does not write is refused. The steps are those that torch.load
knows: https://docs.python.org/3/library/pickletools.html.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from ..errors import LONGEST, CheckpointError
from .npz import ALWAYS_ALLOWED, MAX_EXPANSION
from .pickle_calls import (
    DICTIONARIES,
    OF_TYPE,
    REBUILT,
    STORAGE,
    Global,
    Made,
    find_global,
    hidden,
    is_made,
    is_written,
    item_size,
)

MOST_STEPS = 2_000_000  # torch.load takes a second or two for them; a state dict has some thirty per tensor
LONGEST_LINE, LONGEST_TEXT = 256, 16 << 20  # bytes
LONGEST_KEY, MOST_IN_KEY = 1024, 100  # characters, and values in a tuple
LARGEST_KEY = 2**61 - 2  # two larger ints may have one hash
# Bytes that are taken at most: by a step, a byte of text, a container or tensor, and a tuple as a key, whose hash takes
# time and may be that of another.
STEP, TEXT, OBJECT, TUPLE_KEY = 32, 4, 400, 1 << 16

INT, UINT, SHORT, FLOAT = (struct.Struct(form) for form in ("<i", "<I", "<H", ">d"))
TAR = slice(257, 262)  # where a tar archive says what it is
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TAKES_NOTHING = "its program takes what is not there"


def check_pickles(path: Path, file: IO[bytes], records: Mapping[str, int] | None) -> None:
    """Raise CheckpointError if the pickles in a PyTorch file call what torch.save does not, or build more than fits.

    file: opened, which is left at its start. records: bytes of each record of a zip archive, as since PyTorch 1.6; None
    for a sequence of pickles and values.
    """
    size = file.seek(0, 2)
    file.seek(0)
    try:
        if records is not None:
            data = _record(file)
            program = Program(BytesIO(data), len(data), size)
            program.run()
            program.require_storages()
            program.require_records(records)
        else:
            _check_legacy(Program(file, size, size))
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error.__cause__
    file.seek(0)


def _record(file: IO[bytes]) -> bytes:
    import torch

    try:  # what torch.load reads, whatever another reader of zip archives would find
        return torch._C.PyTorchFileReader(file).get_record("data.pkl")
    except RuntimeError as error:
        raise _damaged(str(error).partition("\n")[0]) from error


def _check_legacy(program: "Program") -> None:
    if program.file.read(TAR.stop)[TAR] == b"ustar":  # of PyTorch 0.1
        raise _other("a tar archive")
    program.file.seek(0)
    if program.run() != LEGACY_MAGIC:
        raise _damaged("it does not begin as PyTorch's files do")
    for _ in ("version", "machine", "object"):
        program.run()
    keys = program.run()
    program.require_storages({key for key in keys if isinstance(key, str)} if isinstance(keys, list) else set())


def more_than_tensors(what: str = "") -> str:
    """What to say of a file that is no plain dictionary of tensors. what: the class that it holds."""
    held = f"tensors ({what if what.isprintable() else repr(what)})" if what else "tensors, or is damaged"
    return (
        f"holds more than {held}; it was not read, because reading it could run code. If you trust it, read it with "
        "torch.load(path, weights_only=False) and save its state_dict() as safetensors"
    )


def _damaged(how: str) -> CheckpointError:
    return CheckpointError(f"is not a whole PyTorch file ({how[:LONGEST]}): fetch or save it again")


def _other(what: str = "") -> CheckpointError:
    return CheckpointError(more_than_tensors(what))


def is_key(key: Any) -> bool:
    """Whether a dictionary may have the key: a short text, a number, None, or a tuple of few of them."""
    if isinstance(key, Made):
        return key.by.users
    if type(key) is not tuple:
        short = len(key) <= LONGEST_KEY if isinstance(key, str) else key is None or isinstance(key, int | float)
        return short and not (isinstance(key, int) and abs(key) > LARGEST_KEY)
    parts, left = [key], MOST_IN_KEY
    while parts and left >= 0:
        part = parts.pop()
        left -= len(part)
        inner = [one for one in part[:MOST_IN_KEY] if type(one) is tuple]
        if not all(type(one) is tuple or is_key(one) for one in part[:MOST_IN_KEY]):
            return False
        parts += inner
        left -= len(inner)
    return left >= 0


class Program:
    """The steps of pickles that follow each other in a file, and what they would build.

    file: where they begin. length: bytes in it. size: bytes of the whole checkpoint.
    """

    def __init__(self, file: IO[bytes], length: int, size: int) -> None:
        self.file, self.length, self.size = file, length, size
        self.budget, self.steps = max(MAX_EXPANSION * size, ALWAYS_ALLOWED), 0
        self.storages: dict[str, int] = {}
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []

    def run(self) -> Any:
        """What a pickle leaves, of which only plain values are there."""
        self.memo, self.stack, self.outer = {}, [], []
        read = self.file.read
        while (step := read(1)) != pickle.STOP:
            if step not in STEPS:
                raise _other() if step else _damaged("it ends too early")
            self.steps += 1
            self.budget -= STEP
            if self.steps > MOST_STEPS or self.budget < 0:
                self.spend(0)
            STEPS[step](self)
        return self.pop()

    def spend(self, cost: int) -> None:
        """Raise CheckpointError if what would be built takes more bytes, or steps, than are allowed."""
        self.budget -= cost
        if self.steps > MOST_STEPS or self.budget < 0:
            raise CheckpointError(
                f"has {self.size} bytes and would build far more, or more than {MOST_STEPS} objects, beside its "
                "tensors: save its state_dict() alone"
            )

    def require_storages(self, filled: set[str] | None = None) -> None:
        """Raise CheckpointError if the tensors need more values than the file has. filled: keys of what has values."""
        total = sum(self.storages.values())
        if total > self.size:
            raise _damaged(f"its values would take {total} bytes of {self.size}")
        if filled is not None and not self.storages.keys() <= filled:
            raise _damaged("it has no values for some of its tensors")

    def require_records(self, records: Mapping[str, int]) -> None:
        """Raise CheckpointError if a record is shorter than its tensors: older PyTorch reads on behind it."""
        if short := [key for key, size in self.storages.items() if records.get(f"data/{key}", 0) < size]:
            raise _damaged(f"its records {short[:3]} are shorter than their tensors")

    def pop(self) -> Any:
        if not self.stack:
            raise _damaged(TAKES_NOTHING)
        return self.stack.pop()

    def last(self) -> Any:
        if not self.stack:
            raise _damaged(TAKES_NOTHING)
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def make(self, value: Any) -> None:
        self.spend(OBJECT)
        self.stack.append(value)

    def mark(self) -> None:
        self.spend(OBJECT)
        self.outer.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        if not self.outer:
            raise _damaged(TAKES_NOTHING)
        items, self.stack = self.stack, self.outer.pop()
        return items

    def bytes(self, count: int) -> bytes:
        if count > min(LONGEST_TEXT, self.length - self.file.tell()):
            raise _damaged(f"{count} bytes of text are announced")
        self.spend(TEXT * count)
        return self.file.read(count)

    def number(self, form: struct.Struct) -> Any:
        data = self.file.read(form.size)
        if len(data) < form.size:
            raise _damaged("it ends too early")
        return form.unpack(data)[0]

    def byte(self) -> int:
        data = self.file.read(1)
        if not data:
            raise _damaged("it ends too early")
        return data[0]

    def text(self, count: int) -> None:
        self.push(self.bytes(count).decode("utf-8", "replace"))

    def store(self, number: int) -> None:
        self.spend(STEP)
        self.memo[number] = self.last()

    def recall(self, number: int) -> None:
        if number not in self.memo:
            raise _damaged(TAKES_NOTHING)
        self.push(self.memo[number])

    def pack(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def extend(self, items: list[Any]) -> None:
        if type(target := self.last()) is not list:
            raise _other()
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        keys, values, target = items[::2], items[1::2], self.last()
        if len(keys) != len(values) or not (type(target) is dict or is_made(target, *DICTIONARIES)):
            raise _other()
        self.check_keys(keys)
        if type(target) is dict:
            target.update(zip(keys, values, strict=True))

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Raise CheckpointError for what a dictionary should not have as a key."""
        for key in keys:
            self.spend(TUPLE_KEY if type(key) is tuple else OBJECT)
            if not is_key(key):
                raise CheckpointError(
                    f"has a {type(key).__name__} as a name that none should have: expected texts of at most "
                    f"{LONGEST_KEY} characters, or numbers; save its state_dict() alone"
                )

    def find(self) -> None:
        module, name = (self.file.readline(LONGEST_LINE).decode("utf-8", "replace") for _ in range(2))
        if not (module.endswith("\n") and name.endswith("\n")):
            raise _damaged("it names no class")
        found = find_global(module[:-1], name[:-1])
        if found is None:
            raise _other(f"{module[:-1]}.{name[:-1]}".removeprefix("builtins."))
        self.make(found)

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not is_written(function, args, self.check_keys):
            raise _other(function.name if isinstance(function, Global) else "")
        self.make(Made(args[0] if function.name == OF_TYPE else function))

    def build(self) -> None:
        """What an object has besides: attributes of a dictionary in order, or the values of a tensor of long ago."""
        state, target = self.pop(), self.last()
        is_tensor = is_made(target, *REBUILT) and type(state) is tuple
        is_dictionary = is_made(target, "collections.OrderedDict") and not hidden(state, OrderedDict)
        if not (is_tensor or is_dictionary or (isinstance(target, Made) and target.by.users)):
            raise _other(target.by.name if isinstance(target, Made) else "")

    def storage(self) -> None:
        """The place of values: ("storage", class, key, device, how many, and of old files what part of another)."""
        what = self.pop()
        if type(what) is not tuple or len(what) not in (5, 6) or what[0] != "storage":
            raise _other()
        _, kind, key, _, count, *_ = what
        size = item_size(kind)
        if size is None or type(count) is not int or count < 0 or not isinstance(key, str):
            raise _damaged("it describes values that cannot be")
        self.storages[key] = max(self.storages.get(key, 0), count * size)
        self.make(STORAGE)


STEPS: dict[bytes, Callable[[Program], object]] = {
    pickle.PROTO: lambda p: p.byte(),
    pickle.MARK: Program.mark,
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
    pickle.EMPTY_LIST: lambda p: p.make([]),
    pickle.EMPTY_DICT: lambda p: p.make({}),
    pickle.EMPTY_SET: lambda p: p.make(Made(Global("builtins.set"))),
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
    pickle.GLOBAL: Program.find,
    pickle.REDUCE: Program.call,
    pickle.NEWOBJ: Program.call,
    pickle.BUILD: Program.build,
    pickle.BINPERSID: Program.storage,
}
