"""Checks of what callers pass: each returns the value, or raises ArgumentError with the argument's name."""

import re
from collections.abc import Callable, Iterable
from operator import index
from types import NoneType, UnionType
from typing import Any, Literal, SupportsIndex, Union, cast, get_args, get_origin

import torch
from torch import Tensor, nn

from .errors import ArgumentError

LONGEST = 80  # characters of a value in a message
LARGEST_COUNT = 1 << 24  # of channels, blocks, classes and pixels


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
    """Whether it counts something; isinstance(value, SupportsIndex) takes a hundred times as long."""
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


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
    """What a field of a configuration is annotated with; see `fits`."""
    if not fits(value, annotation):
        raise wrong(argument, value, _words(annotation))
    if argument.endswith("_rate") and isinstance(value, int | float) and not 0 <= value <= 1:
        raise wrong(argument, value, "a probability, from 0 to 1")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of a type as configurations have them.

    Their ints count something, from 0 to LARGEST_COUNT, and their floats are finite. A list may stand for a tuple, and
    what makes an object may stand for its class.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, kind) for kind in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, tuple | list) else inner
        plural = isinstance(value, tuple | list) and len(value) == len(kinds)
        return plural and all(fits(item, kind) for item, kind in zip(value, kinds, strict=True))
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (type, Callable):
        return callable(value)
    if annotation in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        counted = _is_int(value) and 0 <= cast(SupportsIndex, value).__index__() <= LARGEST_COUNT
        return counted or (annotation is float and number and abs(value) <= LARGEST_COUNT)
    return annotation is Any or isinstance(value, annotation)


def _words(annotation: Any) -> str:
    """An annotation in a message: without the modules of classes."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    texts = ["None" if kind is NoneType else re.sub(r"\b(\w+\.)+", "", _text(kind)) for kind in kinds]
    counts = f", counted up to {LARGEST_COUNT}" if "int" in texts else ""
    return " or ".join(texts) + counts


def _text(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
