"""Convolution, norm and activation with less memory and equal results.

In inference a batch norm overwrites the output of the convolution. In training, PyTorch keeps the inputs of the norm
and of the activation. The second is the first scaled and shifted, so that the backward pass recomputes it in the time
that a copy of it takes in the forward pass (the idea of https://arxiv.org/abs/1712.02616). ReLU gains nothing: PyTorch
keeps its output, which the next layer keeps anyway.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks

aten: Any = torch.ops.aten

# by class: the activation, and its backward function of (gradient of the output, input)
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.SiLU: (F.silu, aten.silu_backward),
    nn.Hardswish: (F.hardswish, aten.hardswish_backward),
    nn.ReLU6: (F.relu6, lambda grad, x: aten.hardtanh_backward(grad, x, 0.0, 6.0)),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(x)) for (N, C, H, W), with less memory in training and equal values, gradients and running statistics.

    Both modules are called unchanged if one of them has a hook, is a subclass, is not training, or is traced, and on
    devices other than the CPU.
    """
    if not (isinstance(norm, nn.BatchNorm2d) and _keeps_less(norm, act, x)):
        return act(norm(x))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _NormAct.apply(x, norm.weight, norm.bias, norm, type(act))


class _NormAct(torch.autograd.Function):
    """Batch norm and activation of x, from the norm's scale and shift, the norm, and the class of the activation."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, act: type[nn.Module]
    ) -> Tensor:
        stats = norm.running_mean, norm.running_var
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, *stats, True, norm.momentum or 0.0, norm.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.eps, ctx.act = norm.eps, act
        return ACTIVATIONS[act][0](y, inplace=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, rstd = ctx.saved_tensors
        (forward, backward), wanted = ACTIVATIONS[ctx.act], ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # for double backward
            inputs = [tensor for tensor, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            y = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
            grads = iter(torch.autograd.grad(forward(y), inputs, grad, create_graph=True))
            return *(next(grads) if needed else None for needed in wanted), None, None
        # scale by rstd * weight with unit statistics, so that y equals the forward pass bit for bit
        ones = torch.ones_like(rstd)
        y, _, _ = torch.native_batch_norm(x, rstd * weight, bias, mean, ones, False, 0.0, 0.0)
        grad = backward(grad, y)
        grads = aten.native_batch_norm_backward(grad, x, weight, None, None, mean, rstd, True, ctx.eps, wanted)
        return *(g if needed else None for g, needed in zip(grads, wanted, strict=True)), None, None


def _keeps_less(norm: nn.BatchNorm2d, act: nn.Module, x: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and type(act) in ACTIVATIONS
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and torch.is_grad_enabled()
        and _is_plain_map(x)
        and not any(getattr(module, kind) for module in (norm, act) for kind in HOOKS)
        and not any(getattr(hooks, f"_global{kind}") for kind in HOOKS)
    )


def _is_plain_map(x: Tensor) -> bool:
    """Whether `x` is a plain CPU map with several values per channel, outside of compilers, tracers and transforms."""
    functorch: Any = torch._C  # untyped functions
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
        and not torch._C._get_tracing_state()
        and not functorch._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def normed(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)), where conv is a convolution or ends with one.

    In inference on a CPU, batch norm overwrites the output of the convolution, with equal values. This saves the
    allocation of new, zero-filled memory, which takes much of its time in large batches.
    """
    y = conv(x)
    if not isinstance(norm, nn.BatchNorm2d) or not (_overwrites(conv, norm) and _is_plain(y, norm)):
        return norm(y)
    stats = norm.running_mean, norm.running_var
    out = y, y.new_empty(0), y.new_empty(0)
    torch.native_batch_norm(y, norm.weight, norm.bias, *stats, False, 0.0, norm.eps, out=out)
    return y


def activated(conv: nn.Module, norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(conv(x))), by `normed` in inference and by `norm_act` in training."""
    return norm_act(norm, act, conv(x)) if norm.training else act(normed(conv, norm, x))


class ConvNorms(nn.Sequential):
    """A sequence in which every convolution and the norm after it run by `normed`."""

    def forward(self, input: Tensor) -> Tensor:
        x, layers = input, iter(self)
        for layer in layers:
            x = self._with_norm(layer, layers, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return x

    def _with_norm(self, conv: nn.Conv2d, others: Iterator[nn.Module], x: Tensor) -> Tensor:
        after = next(others, None)
        return conv(x) if after is None else normed(conv, after, x)


def last_conv(module: nn.Module) -> nn.Conv2d | None:
    """The convolution whose output the module returns: itself or its last layer; None if there is none."""
    last = module[-1] if isinstance(module, ConvNorms) and len(module) else module
    return last if isinstance(last, nn.Conv2d) else None


def _overwrites(conv: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Whether nothing else sees what the convolution returns: no gradient, no hook, no class of the user's."""
    last = last_conv(conv)
    return (
        type(norm) is nn.BatchNorm2d
        and last is not None
        and not (norm.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        and not (last._forward_hooks or conv._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks)
        and not (hooks._global_forward_hooks or hooks._global_forward_pre_hooks)
    )


def _is_plain(y: Tensor, norm: nn.BatchNorm2d) -> bool:
    """Whether `y` is a plain tensor in the norm's dtype, not one of a tracer, `vmap` or autocast."""
    functorch: Any = torch._C  # whose types do not know of it
    return (
        type(y) is Tensor
        and y.device.type == "cpu"
        and norm.running_mean is not None
        and y.dtype == norm.running_mean.dtype
        and not functorch._functorch.is_functorch_wrapped_tensor(y)
        and not torch._C._get_tracing_state()
    )
