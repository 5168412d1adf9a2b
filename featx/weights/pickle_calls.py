"""Allowlist of the classes and functions in pickles of state dicts, with the arguments that torch.save writes."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# Bytes per value of each storage class.
STORAGES = {
    **dict.fromkeys(("ComplexDouble",), 16),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Char", "Byte", "Bool", "Untyped", "QUInt8", "QInt8", "QUInt4x2", "QUInt2x4"), 1),
}
PLACES = ("torch", "torch.cuda", "torch.storage", "torch.sparse", "torch.cuda.sparse")
LATIN = ("latin1", "latin-1")
LONGEST_WORD = 64  # characters of a device name


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names. from_user: whether it is one of PyTorch's `get_safe_globals()`."""

    name: str
    from_user: bool = False


@dataclass(frozen=True, slots=True)
class CallResult:
    """Result of a call in a pickle, such as a tensor or an OrderedDict. by: the called class or function."""

    by: Global


STORAGE = CallResult(Global("storage"))
KeyCheck = Callable[[Iterable[Any]], None]


def find_global(module: str, name: str) -> Global | None:
    """The class or function of that name; None if pickles of state dicts must not use it."""
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if full in CALLS or item_size(Global(full)) or full in _constants():
        return Global(full)
    return Global(full, from_user=True) if full in _user_globals() else None


def item_size(kind: Any) -> int | None:
    """Bytes per value of a storage class; None if it is not a storage class."""
    place, _, name = kind.name.rpartition(".") if isinstance(kind, Global) else ("", "", "")
    return STORAGES.get(name.removesuffix("Storage")) if place in PLACES and name.endswith("Storage") else None


def is_allowed_call(function: Any, args: Any, check_keys: KeyCheck) -> bool:
    """Whether torch.save writes a call of the function with such arguments.

    check_keys: a function that raises CheckpointError for invalid keys, applied to keys that the call would hash.
    """
    if not isinstance(function, Global) or type(args) is not tuple:
        return False
    return function.from_user or (function.name in CALLS and CALLS[function.name](args, check_keys))


def overriding_attribute(attributes: Any, of: type) -> str | None:
    """The first key in a dictionary of attributes that would override an attribute of the class; None if none does.

    A special name counts too: PyTorch and `copy` call `__setstate__` and `__deepcopy__` of the object where it has one.
    """
    if not isinstance(attributes, dict):
        return repr(type(attributes))
    own = (name for name in attributes if not isinstance(name, str) or name.startswith("__") or hasattr(of, name))
    return next((str(name) for name in own), None)


def is_result_of(value: Any, *names: str) -> bool:
    """Whether the value is the result of a call of one of `names`, or of any call if there are no names."""
    return isinstance(value, CallResult) and (not names or value.by.name in names)


def _user_globals() -> set[str]:
    """Full names of the classes and functions that the user allowed torch.load to call."""
    allowed = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in allowed}


@cache
def _constants() -> frozenset[str]:
    """Full names of PyTorch's dtypes and quantization schemes."""
    kinds = (torch.dtype, torch.qscheme)
    return frozenset(f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, kinds))


def _is_numbers(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return all(isinstance(arg, int | float) for arg in args)


def _is_words(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return all(isinstance(arg, int) or (isinstance(arg, str) and len(arg) <= LONGEST_WORD) for arg in args)


def _is_size(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return len(args) == 1 and type(args[0]) is tuple and all(isinstance(side, int) for side in args[0])


def _is_encoded_bytes(args: tuple[Any, ...], _: KeyCheck) -> bool:
    """Whether the arguments are text and a Latin-1 encoding, with one byte per character; others can expand."""
    return len(args) == 2 and isinstance(args[0], str) and args[1] in LATIN


def _is_bytes(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    encoded = len(args) == 1 and is_result_of(args[0], "_codecs.encode")
    return not args or encoded or _is_encoded_bytes(args, check_keys)


def _is_list(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    if len(args) == 1 and type(args[0]) is list:
        check_keys(args[0])
        return True
    return not args


def _is_counter(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args or (len(args) == 1 and type(args[0]) is dict)


def _is_ordered_dict(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    """Whether there are no arguments, or the list of key-value pairs that Python 2 writes."""
    pairs = args[0] if len(args) == 1 else []
    if type(pairs) is not list or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        return False
    return _is_list(([key for key, _ in pairs],), check_keys) and len(args) < 2


def _is_storage_tensor(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return len(args) > 3 and args[0] is STORAGE


def _is_wrapped_tensor(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args or is_result_of(args[0], *TENSORS)


def _is_parameter_with_state(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    return (
        len(args) == 4
        and _is_wrapped_tensor(args, check_keys)
        and not overriding_attribute(args[3], torch.nn.Parameter)
    )


def _is_typed_tensor(args: tuple[Any, ...], check_keys: KeyCheck) -> bool:
    """Whether the arguments are (function, class, arguments of the function, attributes) and the call is allowed."""
    if len(args) != 4 or not all(isinstance(arg, Global) for arg in args[:2]) or args[0].name == REBUILD_FROM_TYPE:
        return False
    return is_allowed_call(args[0], args[2], check_keys) and not overriding_attribute(args[3], torch.nn.Parameter)


def _any_arguments(_args: tuple[Any, ...], _: KeyCheck) -> bool:
    return True


def _no_arguments(args: tuple[Any, ...], _: KeyCheck) -> bool:
    return not args


REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
TENSOR_CALLS: Mapping[str, Callable[[tuple[Any, ...], KeyCheck], bool]] = {
    "torch._utils._rebuild_tensor": _is_storage_tensor,
    "torch._utils._rebuild_tensor_v2": _is_storage_tensor,
    "torch._utils._rebuild_tensor_v3": _is_storage_tensor,
    "torch._utils._rebuild_qtensor": _is_storage_tensor,
    "torch._utils._rebuild_sparse_tensor": _any_arguments,
    "torch._utils._rebuild_meta_tensor_no_storage": _any_arguments,
    "torch._utils._rebuild_parameter": _is_wrapped_tensor,
    "torch._utils._rebuild_parameter_with_state": _is_parameter_with_state,
    "torch.nn.parameter.Parameter": _is_wrapped_tensor,
    REBUILD_FROM_TYPE: _is_typed_tensor,
    # the first releases of PyTorch create an empty tensor and fill it; a size would leave its values unset
    **{f"{place}.{kind}Tensor": _no_arguments for place in PLACES for kind in (*STORAGES, "")},
}
NAMESPACE = f"{Namespace.__module__}.{Namespace.__qualname__}"
CALLS: Mapping[str, Callable[[tuple[Any, ...], KeyCheck], bool]] = {
    **TENSOR_CALLS,
    NAMESPACE: _no_arguments,
    "collections.OrderedDict": _is_ordered_dict,
    "collections.Counter": _is_counter,
    "builtins.set": _is_list,
    "builtins.complex": _is_numbers,
    "builtins.bytearray": _is_bytes,
    "_codecs.encode": _is_encoded_bytes,
    "torch.Size": _is_size,
    "torch.device": _is_words,
    "torch.serialization._get_layout": _is_words,
}
TENSORS = frozenset(TENSOR_CALLS)
DICTIONARIES = ("collections.OrderedDict", "collections.Counter")
