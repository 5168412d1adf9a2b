"""A batch norm and its activation in training, keeping one map for the backward pass where PyTorch keeps two.

PyTorch keeps what enters the norm and what enters the activation. The second is the first scaled and shifted, so that
the backward pass can compute it again in the time that a copy of it takes in the forward pass (the idea of
https://arxiv.org/abs/1712.02616). ReLU gains nothing: PyTorch keeps what it returns, which the next layer keeps anyway.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks

aten: Any = torch.ops.aten

# by class: the activation, and its gradient from that of what it returns and what entered it
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.SiLU: (F.silu, aten.silu_backward),
    nn.Hardswish: (F.hardswish, aten.hardswish_backward),
    nn.ReLU6: (F.relu6, lambda grad, x: aten.hardtanh_backward(grad, x, 0.0, 6.0)),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(x)): (N, C, H, W) to the same shape, with the same values, gradients and running statistics.

    Both modules are called as they are wherever one of them has a hook, is of a class of the user's, does not train, or
    is captured, and on other devices than the CPU.
    """
    if not (isinstance(norm, nn.BatchNorm2d) and _keeps_less(norm, act, x)):
        return act(norm(x))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _NormAct.apply(x, norm.weight, norm.bias, norm, type(act))


class _NormAct(torch.autograd.Function):
    """Of x, the norm's scale and shift, the norm, and the class of the activation."""

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
        if torch.is_grad_enabled():  # the gradient itself is to be differentiated
            inputs = [one for one, needed in zip((x, weight, bias), wanted, strict=True) if needed]
            y = F.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps)
            found = iter(torch.autograd.grad(forward(y), inputs, grad, create_graph=True))
            return *(next(found) if needed else None for needed in wanted), None, None
        # with statistics that change nothing, so that y is the same to the last digit
        ones = torch.ones_like(rstd)
        y, _, _ = torch.native_batch_norm(x, rstd * weight, bias, mean, ones, False, 0.0, 0.0)
        grad = backward(grad, y)
        grads = aten.native_batch_norm_backward(grad, x, weight, None, None, mean, rstd, True, ctx.eps, wanted)
        return *(one if needed else None for one, needed in zip(grads, wanted, strict=True)), None, None


def _keeps_less(norm: nn.BatchNorm2d, act: nn.Module, x: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and type(act) in ACTIVATIONS
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and torch.is_grad_enabled()
        and _is_plain(x)
        and not any(getattr(module, kind) for module in (norm, act) for kind in HOOKS)
        and not any(getattr(hooks, f"_global{kind}") for kind in HOOKS)
    )


def _is_plain(x: Tensor) -> bool:
    """Whether it is an ordinary map of several values a channel, that no compiler, tracer or transform sees."""
    functorch: Any = torch._C  # whose types do not know of it
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
