"""Converts an extractor to a lower precision, except for some of its layers."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ...tracing.module_trace import ModuleTrace


def layers_in_order(model: nn.Module, seen: ModuleTrace) -> tuple[str, ...]:
    """Paths of the modules that have parameters and no children, in the order of execution.

    Args:
        model: A model whose norms have been folded.
        seen: A forward of it before they were.
    """
    modules = dict(model.named_modules())
    found = [path for path in seen.calls if path in modules and not modules[path]._modules]
    return tuple(path for path in found if _parameter(modules[path]) is not None)


def lower(model: nn.Module, dtype: torch.dtype, in_float32: Collection[str]) -> None:
    """Convert a model to a lower precision, in place, and the layers at some paths to float32.

    Modules then convert their inputs to the dtype of their parameters. Operations between modules compute in the more
    precise of the dtypes that they are given.
    """
    for path, module in model.named_modules():
        own = torch.float32 if path in in_float32 else dtype
        module._apply(lambda tensor, own=own: tensor.to(own) if tensor.is_floating_point() else tensor, recurse=False)
        prefix = f"{path}." if path else ""
        is_around = any(layer != path and layer.startswith(prefix) for layer in in_float32)
        if _parameter(module) is not None and not is_around:
            module.register_forward_pre_hook(in_own_dtype)


@torch.no_grad()
def drop_idle_conversions(model: nn.Module, images: Tensor) -> None:
    """Remove the hooks of `lower` that convert nothing, in place, except those of layers in float32.

    They take 8 % of the time of a MobileNetV2 for one image. The dtypes inside a model do not depend on its images.
    """
    converting = [module for module in model.modules() if in_own_dtype in module._forward_pre_hooks.values()]
    idle = {module for module in converting if next(module.parameters()).dtype != torch.float32}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(before is not after for before, after in zip(args, in_own_dtype(module, args), strict=True)):
            idle.discard(module)

    handles = [module.register_forward_pre_hook(note, prepend=True) for module in converting]
    model(images)
    for handle in handles:
        handle.remove()
    for module in idle:
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is in_own_dtype]:
            del module._forward_pre_hooks[key]


def in_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a module, with floating-point tensors in the dtype of its parameters."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def lowest_dtype(model: nn.Module) -> torch.dtype:
    """The least precise dtype of the model's parameters."""
    return min({parameter.dtype for parameter in model.parameters()}, key=lambda dtype: dtype.itemsize)


def _parameter(module: nn.Module) -> nn.Parameter | None:
    return next(module.parameters(recurse=False), None)
