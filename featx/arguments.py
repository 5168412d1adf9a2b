"""Checks of what callers pass: each returns the value, or raises ArgumentError with the argument's name."""

from collections.abc import Iterable
from operator import index
from types import UnionType
from typing import Any, SupportsIndex, Union, cast, get_args, get_origin

import torch
from torch import Tensor, nn

from .errors import ArgumentError

LONGEST = 80  # characters of a value in a message


def wrong(argument: str, value: object, expected: str) -> ArgumentError:
    """The error for a value that is not what is `expected`."""
    text = f"a {type(value).__name__}" if isinstance(value, Tensor | nn.Module) else repr(value)
    return ArgumentError(f"{argument}={text if len(text) <= LONGEST else f'{text[:LONGEST]}…'}: expected {expected}")


def require_module(value: object, argument: str = "model") -> nn.Module:
    """A torch.nn.Module."""
    if not isinstance(value, nn.Module):
        hint = ", such as featx.create_model returns" if isinstance(value, str) else ""
        raise wrong(argument, value, f"a torch.nn.Module{hint}")
    return value


def require_sides(value: Any, argument: str) -> tuple[int, int]:
    """(height, width) in pixels."""
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or not all(_is_int(side) and side > 0 for side in value):
        raise wrong(argument, value, "(height, width) in pixels")
    return index(value[0]), index(value[1])


def require_number(value: Any, argument: str, least: int, what: str = "an int of at least {least}") -> int:
    """An int of at least `least`."""
    if not _is_int(value) or value < least:
        raise wrong(argument, value, what.format(least=least))
    return index(value)


def _is_int(value: object) -> bool:
    """Whether it counts something; NumPy has ints of its own."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor)


def require_texts(value: Any, argument: str, of: type | tuple[type, ...] = str, what: str = "strings") -> list[Any]:
    """A sequence of strings, or of other classes, as a list."""
    plural = isinstance(value, Iterable) and not isinstance(value, str | bytes | Tensor | nn.Module)
    items = list(cast(Iterable[Any], value)) if plural else []
    if not plural or not all(isinstance(item, of) for item in items):
        raise wrong(argument, value, f"a list of {what}")
    return items


def require_place(device: Any, dtype: Any) -> None:
    """A device that PyTorch finds here, and a floating-point type; None is a choice of neither."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise wrong("dtype", dtype, "a floating-point type such as torch.float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise wrong("device", device, "a device that PyTorch finds here, such as 'cpu' or 'cuda'") from error


def require_kind(value: object, argument: str, annotation: Any) -> None:
    """What a field of a configuration is annotated with, as far as that is int, float, str or bool, or one of them."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if not all(kind in (int, float, str, bool, type(None)) for kind in kinds):
        return
    counts = _is_int(value) and (int in kinds or float in kinds)
    if not counts and not any(isinstance(value, kind) and isinstance(value, bool) == (kind is bool) for kind in kinds):
        raise wrong(argument, value, " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds))
    if argument.endswith("_rate") and isinstance(value, int | float) and not 0 <= value <= 1:
        raise wrong(argument, value, "a probability, from 0 to 1")
