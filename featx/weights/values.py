"""Values of configurations as JSON and back: plain ones, dataclasses, and classes and functions by their path."""

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
    """Whether JSON has a word for it."""
    if isinstance(value, tuple | list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal; partial functions, which compare by identity, are if they are written alike."""
    return one == other or encoded(one) == encoded(other)


def encoded(value: Any) -> Any:
    """The value as JSON; ArgumentError if it is of a kind that `decoded` could not make again."""
    if isinstance(value, tuple | list):
        return [encoded(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type) and _is_known(type(value)):
        return {CLASS: _path(type(value)), FIELDS: {f.name: encoded(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, partial) and not value.args and _is_known(value.func):
        return {PARTIAL: _path(value.func), FIELDS: {name: encoded(field) for name, field in value.keywords.items()}}
    if isinstance(value, type) or isfunction(value):
        if _is_known(value):
            return {PATH: _path(value)}
    elif is_plain(value):
        return value
    raise ArgumentError(f"{value!r} cannot be written into a config.json: save the model's state_dict() instead")


def decoded(value: Any) -> Any:
    """The value again; CheckpointError if it names what is no part of a configuration."""
    if isinstance(value, list):
        return tuple(decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = next((kind for kind in (CLASS, PARTIAL, PATH) if kind in value), None)
    found: Any = _found(str(value.get(kind)))
    if kind == PATH:
        return found
    if kind == CLASS and not hasattr(found, "__dataclass_fields__"):
        raise CheckpointError(f"config.json: {value[CLASS]} is no configuration")
    stated = value.get(FIELDS, {})
    if not isinstance(stated, dict):
        raise CheckpointError(f"config.json: the fields of {found.__name__} are a {type(stated).__name__}, no object")
    arguments = {name: decoded(field) for name, field in stated.items()}
    try:
        return partial(found, **arguments) if kind == PARTIAL else found(**arguments)
    except TypeError as error:
        raise CheckpointError(f"config.json: {found.__name__} does not take [{names_in(sorted(arguments))}]") from error


def _found(path: str) -> Any:
    """The class or function at that path, if it is one of our models' or a layer of PyTorch; nothing else is read."""
    module, _, name = path.rpartition(".")
    if len(path) > LONGEST_PATH or not module.startswith((OURS, TORCHS)) or not name.isidentifier():
        shown = path[:LONGEST_PATH]
        raise CheckpointError(f"config.json names {shown!r}, which is neither a part of featx.models nor of torch.nn")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"config.json names {path!r}, which does not exist here") from error
    if not _is_known(found) or _path(found) != path:
        raise CheckpointError(f"config.json names {path!r}, which is no part of a configuration")
    return found


def _is_known(value: Any) -> bool:
    where = f"{value.__module__}."
    if where.startswith(OURS):
        return isinstance(value, type) or isfunction(value)
    return where.startswith(TORCHS) and isinstance(value, type) and issubclass(value, nn.Module)


def _path(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
