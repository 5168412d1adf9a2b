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
    F.group_norm: aten.group_norm.default,
    torch.Tensor.unflatten: aten.unflatten.int,
    torch.Tensor.expand_as: aten.expand_as.default,
    torch.Tensor.view_as: aten.view_as.default,
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


RESIZING: dict[str, Any] = {
    "nearest": aten.upsample_nearest2d.vec,
    "bilinear": aten.upsample_bilinear2d.vec,
    "bicubic": aten.upsample_bicubic2d.vec,
}


def _interpolated(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Written | None:
    """Of `interpolate`, maps to a size or by factors; its parts compute with sizes."""
    if x.ndim != 4 or mode not in RESIZING or antialias or recompute_scale_factor:
        return None
    sizes = [size] * 2 if isinstance(size, int) else size
    factors = [float(scale_factor)] * 2 if isinstance(scale_factor, int | float) else scale_factor
    corners = () if mode == "nearest" else (bool(align_corners),)
    return RESIZING[mode], (x, sizes, *corners, factors), {}


def _pooled(x: Tensor, output_size: Any) -> Written | None:
    """Of `adaptive_avg_pool2d`, that to a given size; its parts set addresses in some memory formats."""
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    return None if None in size else (aten.adaptive_avg_pool2d.default, (x, size), {})


CHECKED: dict[Any, Callable[..., Written | None]] = {F.interpolate: _interpolated, F.adaptive_avg_pool2d: _pooled}
