"""Argument checks: each returns the value, or raises ArgumentError with the argument's name."""

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
    """The ArgumentError for a value other than `expected`."""
    text = f"a {type(value).__name__}" if isinstance(value, Tensor | nn.Module) else repr(value)
    return ArgumentError(f"{argument}={text if len(text) <= LONGEST else f'{text[:LONGEST]}…'}: expected {expected}")


def require_module(value: object, argument: str = "model") -> nn.Module:
    """The value, if it is a torch.nn.Module."""
    if not isinstance(value, nn.Module):
        hint = ", such as featx.create_model returns" if isinstance(value, str) else ""
        raise wrong(argument, value, f"a torch.nn.Module{hint}")
    return value


def require_size(value: Any, argument: str) -> tuple[int, int]:
    """The value as (height, width) in pixels."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    if not is_pair or not all(_is_int(side) and side > 0 for side in value):
        raise wrong(argument, value, "(height, width) in pixels")
    return index(value[0]), index(value[1])


def require_number(value: Any, argument: str, least: int, what: str = "an int of at least {least}") -> int:
    """The value as an int, if it is at least `least`."""
    if not _is_int(value) or value < least:
        raise wrong(argument, value, what.format(least=least))
    return index(value)


def _is_int(value: object) -> bool:
    """Whether the value is an integer; isinstance(value, SupportsIndex) takes a hundred times as long."""
    return hasattr(value, "__index__") and not isinstance(value, bool | Tensor)


def require_strings(value: Any, argument: str, of: type | tuple[type, ...] = str, what: str = "strings") -> list[Any]:
    """The items as a list, if all are strings or instances of `of`."""
    is_sequence = isinstance(value, Iterable) and not isinstance(value, str | bytes | Tensor | nn.Module)
    items = list(cast(Iterable[Any], value)) if is_sequence else []
    if not is_sequence or not all(isinstance(item, of) for item in items):
        raise wrong(argument, value, f"a list of {what}")
    return items


def require_device_dtype(device: Any, dtype: Any) -> None:
    """Raise ArgumentError unless the device is available and the dtype is a floating-point type; None is accepted."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise wrong("dtype", dtype, "a floating-point type such as torch.float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise wrong("device", device, "a device that PyTorch finds here, such as 'cpu' or 'cuda'") from error


def require_annotated(value: object, argument: str, annotation: Any) -> None:
    """Raise ArgumentError unless the value matches the annotation of a configuration field, as `fits` defines it."""
    if not fits(value, annotation):
        raise wrong(argument, value, _type_names(annotation))
    if argument.endswith("_rate") and isinstance(value, int | float) and not 0 <= value <= 1:
        raise wrong(argument, value, "a probability, from 0 to 1")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value matches the type annotation of a configuration field.

    Ints are counts from 0 to LARGEST_COUNT; floats are finite. A list is accepted for a tuple, and any callable for a
    class.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, inner) for inner in arguments)
    if origin is tuple:
        annotations = (
            arguments[:1] * len(value) if arguments[1:] == (...,) and isinstance(value, tuple | list) else arguments
        )
        is_sequence = isinstance(value, tuple | list) and len(value) == len(annotations)
        return is_sequence and all(fits(item, inner) for item, inner in zip(value, annotations, strict=True))
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin in (type, Callable):
        return callable(value)
    if annotation in (int, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        counted = _is_int(value) and 0 <= cast(SupportsIndex, value).__index__() <= LARGEST_COUNT
        return counted or (annotation is float and number and abs(value) <= LARGEST_COUNT)
    return annotation is Any or isinstance(value, annotation)


def _type_names(annotation: Any) -> str:
    """The annotation as text for a message, with class names instead of dotted paths."""
    annotations = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    texts = ["None" if inner is NoneType else re.sub(r"\b(\w+\.)+", "", _type_name(inner)) for inner in annotations]
    counts = f", counted up to {LARGEST_COUNT}" if "int" in texts else ""
    return " or ".join(texts) + counts


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
