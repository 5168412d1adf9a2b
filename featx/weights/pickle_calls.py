"""The classes and functions that the pickles of state dicts call, and with which arguments torch.save writes them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# Bytes of a value in each kind of storage.
STORAGES = {
    **dict.fromkeys(("ComplexDouble",), 16),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "Untyped", "QUInt8", "QInt8", "QUInt4x2", "QUInt2x4"), 1),
}
PLACES = ("torch", "torch.cuda", "torch.storage", "torch.sparse", "torch.cuda.sparse")
LATIN = ("latin1", "latin-1")
LONGEST_WORD = 64  # characters of the name of a device


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. users: whether `torch.serialization.add_safe_globals` allows it."""

    name: str
    users: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """What a call gives that is no plain value, such as a tensor or a dictionary in order. by: what was called."""

    by: Global


STORAGE = Made(Global("storage"))
KeyCheck = Callable[[Iterable[Any]], None]


def find_global(module: str, name: str) -> Global | None:
    """The class or function of that name; None if state dicts have no use for it."""
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if full in CALLS or item_size(Global(full)) or full in _constants():
        return Global(full)
    return Global(full, users=True) if full in _users() else None


def item_size(kind: Any) -> int | None:
    """Bytes of a value in a storage of that class; None if it is no such class."""
    place, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    return STORAGES.get(name.removesuffix("Storage")) if place in PLACES and name.endswith("Storage") else None


def is_written(function: Any, args: Any, check_keys: KeyCheck) -> bool:
    """Whether torch.save writes a call of the function with these arguments.

    check_keys: what raises CheckpointError for keys that are hashed in the call and must not be.
    """
    if not isinstance(function, Global) or type(args) is not tuple:
        return False
    return function.users or (function.name in CALLS and CALLS[function.name](args, check_keys))


def hidden(attributes: Any, of: type) -> str | None:
    """The first of the attributes, given as a dictionary, that takes the place of one of the class; None if none is."""
    if not isinstance(attributes, dict):
        return repr(type(attributes))
    return next((str(name) for name in attributes if not isinstance(name, str) or hasattr(of, name)), None)


def is_made(value: Any, *names: str) -> bool:
    """Whether the value is what a call of one of these gives; of any, if there are none."""
    return isinstance(value, Made) and (not names or value.by.name in names)


def _users() -> set[str]:
    """Full names of what the user has allowed torch.load to call."""
    allowed = torch.serialization.get_safe_globals()
    return {one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in allowed}


@cache
def _constants() -> frozenset[str]:
    """Full names of PyTorch's types of numbers, and of its schemes of quantisation."""
    kinds = (torch.dtype, torch.qscheme)
    return frozenset(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, kinds))


def _numbers(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return all(isinstance(arg, int | float) for arg in args)


def _words(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return all(isinstance(arg, int) or (isinstance(arg, str) and len(arg) <= LONGEST_WORD) for arg in args)


def _size(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return len(args) == 1 and type(args[0]) is tuple and all(isinstance(side, int) for side in args[0])


def _encoded(args: tuple[Any, ...], _: KeyCheck) -> bool:
    """Text of which each character stands for a byte; other encodings let it grow."""
    return len(args) == 2 and isinstance(args[0], str) and args[1] in LATIN


def _bytes(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    encoded = len(args) == 1 and is_made(args[0], "_codecs.encode")
    return not args or encoded or _encoded(args, check_keys)


def _listed(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    if len(args) == 1 and type(args[0]) is list:
        check_keys(args[0])
        return True
    return not args


def _counted(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args or (len(args) == 1 and type(args[0]) is dict)


def _ordered(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    """No arguments, or the list of pairs that Python 2 writes."""
    pairs = args[0] if len(args) == 1 else []
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        return False
    return _listed(([key for key, _ in pairs],), check_keys) and len(args) < 2


def _of_storage(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return len(args) > 3 and args[0] is STORAGE


def _of_tensor(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args or is_made(args[0], *TENSORS)


def _with_attributes(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    return len(args) == 4 and _of_tensor(args, check_keys) and not hidden(args[3], torch.nn.Parameter)


def _of_type(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    """(function, class, its arguments, attributes)."""
    if len(args) != 4 or not all(isinstance(arg, Global) for arg in args[:2]) or args[0].name == OF_TYPE:
        return False
    return is_written(args[0], args[2], check_keys) and not hidden(args[3], torch.nn.Parameter)


def _anything(_args: tuple[Any, ...], _: KeyCheck) -> bool:
    return True


def _nothing(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args


OF_TYPE = "torch._tensor._rebuild_from_type_v2"
REBUILT: Mapping[str, Callable[[tuple[Any, ...], KeyCheck], bool]] = {
    "torch._utils._rebuild_tensor": _of_storage,
    "torch._utils._rebuild_tensor_v2": _of_storage,
    "torch._utils._rebuild_tensor_v3": _of_storage,
    "torch._utils._rebuild_qtensor": _of_storage,
    "torch._utils._rebuild_sparse_tensor": _anything,
    "torch._utils._rebuild_meta_tensor_no_storage": _anything,
    "torch._utils._rebuild_parameter": _of_tensor,
    "torch._utils._rebuild_parameter_with_state": _with_attributes,
    "torch.nn.parameter.Parameter": _of_tensor,
    OF_TYPE: _of_type,
    # the first releases of PyTorch make an empty tensor and fill it: of so many values, these would not be set
    **{f"{place}.{kind}Tensor": _nothing for place in PLACES for kind in (*STORAGES, "")},
}
CALLS: Mapping[str, Callable[[tuple[Any, ...], KeyCheck], bool]] = {
    **REBUILT,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counted,
    "builtins.set": _listed,
    "builtins.complex": _numbers,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": _words,
    "torch.serialization._get_layout": _words,
}
TENSORS = frozenset(REBUILT)
DICTIONARIES = ("collections.OrderedDict", "collections.Counter")
