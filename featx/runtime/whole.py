"""Functions that are recorded as one operation, for which there are kernels, where their parts would be otherwise."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

WHOLE: dict[Any, Any] = {
    torch.conv2d: aten.conv2d.default,
    F.linear: aten.linear.default,
    F.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
    torch.matmul: aten.matmul.default,
    torch.Tensor.matmul: aten.matmul.default,
    torch.Tensor.__matmul__: aten.matmul.default,
    torch.Tensor.unflatten: aten.unflatten.int,
    torch.flatten: aten.flatten.using_ints,
    torch.Tensor.flatten: aten.flatten.using_ints,
}
Written = tuple[Any, tuple[Any, ...], dict[str, Any]]  # an operation, and its arguments


def written_as(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written | None:
    """What a function is written down as; None if its parts are."""
    if func in CHECKED:
        return CHECKED[func](*args, **kwargs)
    words = any(isinstance(one, str) for one in (*args, *kwargs.values()))  # such as padding="same"
    return None if func not in WHOLE or words else (WHOLE[func], args, kwargs)


def _nearest(x: Tensor, /, **given: Any) -> Written | None:
    """Of `interpolate`, cells repeated by a factor."""
    stated = {name: value for name, value in given.items() if value and (name, value) != ("mode", "nearest")}
    if x.ndim != 4 or list(stated) != ["scale_factor"]:
        return None
    factor = given["scale_factor"]
    return aten.upsample_nearest2d.vec, (x, None, [factor, factor] if isinstance(factor, float) else list(factor)), {}


def _pooled(x: Tensor, output_size: Any) -> Written | None:
    """Of `adaptive_avg_pool2d`, that to a given size; its parts set addresses in some memory formats."""
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    return None if None in size else (aten.adaptive_avg_pool2d.default, (x, size), {})


CHECKED: dict[Any, Callable[..., Written | None]] = {F.interpolate: _nearest, F.adaptive_avg_pool2d: _pooled}
