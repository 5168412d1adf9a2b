"""An extractor in a lower precision, the first layers of which may stay in float32."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..watch import ForwardTrace


@dataclass(frozen=True)
class MixedPrecision:
    """Paths of all layers with weights, in the order in which they run, and how many first ones stay in float32."""

    layers: tuple[str, ...] = ()
    count: int = 0

    @property
    def exact(self) -> tuple[str, ...]:
        return self.layers[: self.count]


def layers_in_order(model: nn.Module, seen: ForwardTrace) -> tuple[str, ...]:
    """Paths of the modules of parameters alone, as they ran; `seen` is a forward of the model before it was folded."""
    modules = dict(model.named_modules())
    paths = [seen.path(module) for module in seen.calls]
    return tuple(path for path in paths if path in modules and modules[path]._parameters and not modules[path]._modules)


def lower(model: nn.Module, dtype: torch.dtype, exact: Collection[str]) -> None:
    """Convert a model to a lower precision, in place, but for the layers that stay `exact`, which are named by path."""
    for path, module in model.named_modules():
        if path not in exact:
            module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, recurse=False)


@torch.no_grad()
def connect(model: nn.Module, layers: Collection[str], images: Tensor) -> None:
    """Have those layers convert their inputs that are given some in another dtype than their weights', in place.

    What is between layers computes in the more precise of the dtypes that meet there. images: (N, C, H, W), which show
    where dtypes meet.
    """
    meeting: dict[nn.Module, None] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        converted = in_own_dtype(module, args)
        if any(after is not before for after, before in zip(converted, args, strict=True)):
            meeting[module] = None
        return converted

    hooks = [model.get_submodule(path).register_forward_pre_hook(note) for path in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    for module in meeting:
        module.register_forward_pre_hook(in_own_dtype)


def in_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a module is given, with tensors of floats in the dtype of its parameters."""
    dtype = next(module.parameters()).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
