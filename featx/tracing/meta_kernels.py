"""Meta kernels for operations that PyTorch decomposes in Python on the meta device.

These decompositions take most of the time of a run on the meta device: milliseconds for each norm and activation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .third_party_errors import passed_on

aten = torch.ops.aten


class MetaKernels(TorchDispatchMode):
    """A mode in which operations on meta tensors use RULES, which contain no operation whose MACs `describe` counts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return run_with_meta_rule(func, args, kwargs or {})


def run_with_meta_rule(func: Any, args: Any, kwargs: Any) -> Any:
    """Run the operation: by its rule on the meta device, if it has one for these arguments, or else by PyTorch."""
    rule = RULES.get(func)
    if rule is not None and args[0].is_meta:
        output = rule(*args, **kwargs)
        if output is not None:
            return output
    return passed_on(func, *args, **kwargs)


def _activation(x: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return x.clone() if x.is_floating_point() else None  # 20 times as fast as empty_like


def _activation_in_place(x: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return x if x.is_floating_point() else None


def _batch_norm(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    if any(isinstance(tensor, Tensor) and tensor.shape != x.shape[1:2] for tensor in arguments):
        return None
    return x.clone(), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _layer_norm(x: Tensor, shape: list[int], *tensors: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    kept = x.ndim - len(shape)
    fits = all(tensor.shape == x.shape[kept:] for tensor in tensors if isinstance(tensor, Tensor))
    if not fits or list(x.shape[kept:]) != list(shape):
        return None
    moments = (*x.shape[:kept], *[1] * len(shape))
    return _contiguous(x), x.new_empty(moments), x.new_empty(moments)


def _group_norm(x: Tensor, weight: Any, bias: Any, n: int, chs: int, _: int, groups: int, __: float) -> Any:
    if chs % groups or any(tensor is not None and tensor.shape != (chs,) for tensor in (weight, bias)):
        return None
    return _contiguous(x), x.new_empty(n, groups), x.new_empty(n, groups)


def _contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    matches = bias.dtype == a.dtype == b.dtype and bias.shape == b.shape[1:] and a.shape[1:] == b.shape[:1]
    return aten.mm.default(a, b) if matches else None  # which has the same number of MACs


def _bilinear(x: Tensor, *arguments: Any) -> Tensor:
    return aten._upsample_bilinear2d_aa.default(x, *arguments)  # which has a meta kernel in C++


def _bicubic(x: Tensor, *arguments: Any) -> Tensor:
    return aten._upsample_bicubic2d_aa.default(x, *arguments)


def _safe_softmax(x: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor | None:
    return aten._softmax.default(x, axis, False) if dtype is None and x.is_floating_point() else None


def _binary(x: Tensor, other: Any, **_: Any) -> Tensor | None:
    """An elementwise operation on two tensors whose result has the shape and memory layout of the first."""
    if not isinstance(other, Tensor) or x.dtype != other.dtype:
        return None
    if x.shape == other.shape and x.stride() == other.stride():
        return x.clone()
    shape = passed_on(torch.broadcast_shapes, x.shape, other.shape)  # raises for the same shapes as the operation
    return x.clone() if x.is_contiguous() and other.numel() < x.numel() and shape == x.shape else None


RULES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten.addmm.default: _addmm,
    aten.upsample_bilinear2d.default: _bilinear,
    aten.upsample_bicubic2d.default: _bicubic,
    aten._safe_softmax.default: _safe_softmax,
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor), _binary),
    **dict.fromkeys(
        (
            *(aten.hardswish.default, aten.hardsigmoid.default, aten.hardtanh.default, aten.relu.default),
            *(aten.gelu.default, aten.silu.default, aten.sigmoid.default, aten.elu.default, aten.leaky_relu.default),
            aten.clamp_min.default,
        ),
        _activation,
    ),
    **dict.fromkeys((aten.hardswish_.default, aten.hardsigmoid_.default, aten.hardtanh_.default), _activation_in_place),
}
