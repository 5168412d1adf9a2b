"""Encode configuration values as JSON and decode them: plain values, dataclasses, and classes or functions by path."""

from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from inspect import isfunction
from typing import Any

from torch import nn

from ..errors import ArgumentError, CheckpointError, names_in

CLASS, FIELDS, PATH, PARTIAL = "class", "fields", "path", "partial"
LONGEST_PATH = 200
OURS, TORCHS = "featx.models.", "torch.nn.modules."


def is_plain(value: object) -> bool:
    """Whether JSON can represent the value directly."""
    if isinstance(value, tuple | list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def same_value(first: Any, second: Any) -> bool:
    """Whether two values are equal. Partial functions, which compare by identity, are compared by their encoding."""
    return first == second or encode_value(first) == encode_value(second)


def encode_value(value: Any) -> Any:
    """The value as JSON; ArgumentError if `decode_value` could not restore it."""
    if isinstance(value, tuple | list):
        return [encode_value(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type) and _is_known(type(value)):
        return {
            CLASS: _path(type(value)),
            FIELDS: {f.name: encode_value(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, partial) and not value.args and _is_known(value.func):
        return {
            PARTIAL: _path(value.func),
            FIELDS: {name: encode_value(field) for name, field in value.keywords.items()},
        }
    if isinstance(value, type) or isfunction(value):
        if _is_known(value):
            return {PATH: _path(value)}
    elif is_plain(value):
        return value
    raise ArgumentError(f"{value!r} cannot be written into a config.json: save the model's state_dict() instead")


def decode_value(value: Any) -> Any:
    """The value of its JSON encoding; CheckpointError if it names a class or function that is not allowed."""
    if isinstance(value, list):
        return tuple(decode_value(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = next((kind for kind in (CLASS, PARTIAL, PATH) if kind in value), None)
    target: Any = _import_known(str(value.get(kind)))
    if kind == PATH:
        return target
    if kind == CLASS and not hasattr(target, "__dataclass_fields__"):
        raise CheckpointError(f"config.json: {value[CLASS]} is not a configuration class")
    stated = value.get(FIELDS, {})
    if not isinstance(stated, dict):
        raise CheckpointError(
            f"config.json: expected the fields of {target.__name__} as an object, got a {type(stated).__name__}"
        )
    arguments = {name: decode_value(field) for name, field in stated.items()}
    try:
        return partial(target, **arguments) if kind == PARTIAL else target(**arguments)
    except TypeError as error:
        raise CheckpointError(
            f"config.json: {target.__name__} does not take [{names_in(sorted(arguments))}]"
        ) from error


def _import_known(path: str) -> Any:
    """Import the class or function at a path in featx.models or torch.nn; CheckpointError for any other path."""
    module, _, name = path.rpartition(".")
    if len(path) > LONGEST_PATH or not module.startswith((OURS, TORCHS)) or not name.isidentifier():
        shown = path[:LONGEST_PATH]
        raise CheckpointError(f"config.json names {shown!r}, which is neither a part of featx.models nor of torch.nn")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"config.json names {path!r}, which does not exist here") from error
    if not _is_known(target) or _path(target) != path:
        raise CheckpointError(f"config.json names {path!r}, which is not allowed in a configuration")
    return target


def _is_known(value: Any) -> bool:
    where = f"{value.__module__}."
    if where.startswith(OURS):
        return isinstance(value, type) or isfunction(value)
    return where.startswith(TORCHS) and isinstance(value, type) and issubclass(value, nn.Module)


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
