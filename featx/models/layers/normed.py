"""A convolution and its norm, without memory for the result of each where nobody can tell."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from .norm_act import norm_act


def normed(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)), where conv is a convolution, or ends with one.

    In inference on a CPU a batch norm writes over what the convolution returned, with the same numbers: otherwise much
    of its time in large batches goes into new memory, which the kernel fills with zeros first.
    """
    y = conv(x)
    if not isinstance(norm, nn.BatchNorm2d) or not (_overwrites(conv, norm) and _is_plain(y, norm)):
        return norm(y)
    stats = norm.running_mean, norm.running_var
    out = y, y.new_empty(0), y.new_empty(0)
    torch.native_batch_norm(y, norm.weight, norm.bias, *stats, False, 0.0, norm.eps, out=out)
    return y


def activated(conv: nn.Module, norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """act(norm(conv(x))) as `normed` in inference, and as `norm_act` in training."""
    return norm_act(norm, act, conv(x)) if norm.training else act(normed(conv, norm, x))


class ConvNorms(nn.Sequential):
    """A sequence in which every convolution and the norm behind it run as `normed`."""

    def forward(self, input: Tensor) -> Tensor:
        x, layers = input, iter(self)
        for layer in layers:
            x = self._with_norm(layer, layers, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return x

    def _with_norm(self, conv: nn.Conv2d, others: Iterator[nn.Module], x: Tensor) -> Tensor:
        after = next(others, None)
        return conv(x) if after is None else normed(conv, after, x)


def last_conv(module: nn.Module) -> nn.Conv2d | None:
    """The convolution that the module is, or ends with; None if it does not return what a convolution returned."""
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
    """Whether it is an ordinary tensor in the norm's own dtype: not one of a tracer, `vmap` or autocast."""
    functorch: Any = torch._C  # whose types do not know of it
    return (
        type(y) is Tensor
        and y.device.type == "cpu"
        and norm.running_mean is not None
        and y.dtype == norm.running_mean.dtype
        and not functorch._functorch.is_functorch_wrapped_tensor(y)
        and not torch._C._get_tracing_state()
    )
