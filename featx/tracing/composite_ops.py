"""Functions that are recorded as one composite operation, instead of the operations they decompose into."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

COMPOSITES: dict[Any, Any] = {
    torch.conv2d: aten.conv2d.default,
    F.linear: aten.linear.default,
    F.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
    torch.matmul: aten.matmul.default,
    torch.Tensor.matmul: aten.matmul.default,
    torch.Tensor.__matmul__: aten.matmul.default,
    F.group_norm: aten.group_norm.default,
    torch.Tensor.unflatten: aten.unflatten.int,
    torch.Tensor.expand_as: aten.expand_as.default,
    torch.Tensor.view_as: aten.view_as.default,
    torch.flatten: aten.flatten.using_ints,
    torch.Tensor.flatten: aten.flatten.using_ints,
}
OperationCall = tuple[Any, tuple[Any, ...], dict[str, Any]]  # operation, positional and keyword arguments


def as_composite(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OperationCall | None:
    """The composite operation that a call of `func` is recorded as; None to record its decomposition."""
    if func in CONDITIONAL:
        return CONDITIONAL[func](*args, **kwargs)
    has_strings = any(isinstance(value, str) for value in (*args, *kwargs.values()))  # such as padding="same"
    return None if func not in COMPOSITES or has_strings else (COMPOSITES[func], args, kwargs)


UPSAMPLING: dict[str, Any] = {
    "nearest": aten.upsample_nearest2d.vec,
    "bilinear": aten.upsample_bilinear2d.vec,
    "bicubic": aten.upsample_bicubic2d.vec,
}


def _interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> OperationCall | None:
    """`F.interpolate` of maps, whose decomposition computes with sizes."""
    if x.ndim != 4 or mode not in UPSAMPLING or antialias or recompute_scale_factor:
        return None
    sizes = [size] * 2 if isinstance(size, int) else size
    factors = [float(scale_factor)] * 2 if isinstance(scale_factor, int | float) else scale_factor
    corners = () if mode == "nearest" else (bool(align_corners),)
    return UPSAMPLING[mode], (x, sizes, *corners, factors), {}


def _adaptive_avg_pool2d(x: Tensor, output_size: Any) -> OperationCall | None:
    """Pooling to a known size, whose decomposition calls `as_strided` in some memory formats."""
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    return None if None in size else (aten.adaptive_avg_pool2d.default, (x, size), {})


CONDITIONAL: dict[Any, Callable[..., OperationCall | None]] = {
    F.interpolate: _interpolate,
    F.adaptive_avg_pool2d: _adaptive_avg_pool2d,
}
