"""Conversion of an extractor to a lower precision, except for some of its layers."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from ...tracing.module_trace import ModuleTrace


def layers_in_order(model: nn.Module, trace: ModuleTrace) -> tuple[str, ...]:
    """Paths of the modules that have parameters and no children, in the order of execution.

    Args:
        model: A model with folded norms.
        trace: The trace of its forward from before norms were folded.
    """
    modules = dict(model.named_modules())
    leaves = [path for path in trace.calls if path in modules and not modules[path]._modules]
    return tuple(path for path in leaves if _parameter(modules[path]) is not None)


def lower(model: nn.Module, dtype: torch.dtype, in_float32: Collection[str]) -> None:
    """Convert a model to a lower precision and the layers at some paths to float32, in place.

    Hooks convert the inputs of modules to the dtype of their parameters. Operations between modules compute in the more
    precise dtype of their operands.
    """
    for path, module in model.named_modules():
        target = torch.float32 if path in in_float32 else dtype
        module._apply(lambda x, target=target: x.to(target) if x.is_floating_point() else x, recurse=False)
        prefix = f"{path}." if path else ""
        is_around = any(layer != path and layer.startswith(prefix) for layer in in_float32)
        if _parameter(module) is not None and not is_around:
            module.register_forward_pre_hook(in_own_dtype)


@torch.no_grad()
def remove_idle_conversions(model: nn.Module, images: Tensor) -> None:
    """Remove the hooks of `lower` that convert nothing, in place, except those of layers in float32.

    These hooks take 8 % of a MobileNetV2's time for one image. The dtypes inside a model do not depend on its images.
    """
    converting = [module for module in model.modules() if in_own_dtype in module._forward_pre_hooks.values()]
    idle = {module for module in converting if next(module.parameters()).dtype != torch.float32}

    def record_conversion(module: nn.Module, args: tuple[Any, ...]) -> None:
        if any(before is not after for before, after in zip(args, in_own_dtype(module, args), strict=True)):
            idle.discard(module)

    handles = [module.register_forward_pre_hook(record_conversion, prepend=True) for module in converting]
    model(images)
    for handle in handles:
        handle.remove()
    for module in idle:
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is in_own_dtype]:
            del module._forward_pre_hooks[key]


def in_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook that converts floating-point tensors among the arguments to the dtype of the parameters."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)


def lowest_dtype(model: nn.Module) -> torch.dtype:
    """The least precise dtype of the model's parameters."""
    return min({parameter.dtype for parameter in model.parameters()}, key=lambda dtype: dtype.itemsize)


def _parameter(module: nn.Module) -> nn.Parameter | None:
    return next(module.parameters(recurse=False), None)
