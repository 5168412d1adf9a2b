"""Copies of a model of timm: one that can be cut without touching the model, one that runs without computing."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..wrappers.refusals import third_party
from ..wrappers.shortcuts import Shortcuts

Module = TypeVar("Module", bound=nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])

# Attributes in which modules of timm keep values they computed from parameters, some of which cannot be copied.
CACHES = ("attention_bias_cache",)


def with_graph(function: Function) -> Function:
    """The function, always run with autograd's graph, also within no_grad or inference_mode."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


def sharing(model: Module) -> Module:
    """A copy of the modules that holds the very tensors of `model`."""
    return _copy(model, lambda tensor: tensor)


def without_values(model: Module) -> Module:
    """A copy on the meta device, in eval mode, of which every parameter wants a gradient."""

    def on_meta(tensor: Tensor) -> Tensor:
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        return nn.Parameter(empty, empty.is_floating_point()) if isinstance(tensor, nn.Parameter) else empty

    twin = _copy(model, on_meta).eval()
    for module in twin.modules():
        if "grad_checkpointing" in vars(module):  # which can hide parameters from autograd's graph
            vars(module).update(grad_checkpointing=False)
    return twin


def _copy(model: Module, tensor_of: Callable[[Tensor], Tensor]) -> Module:
    memo: dict[int, Any] = {id(tensor): tensor_of(tensor) for tensor in (*model.parameters(), *model.buffers())}
    caches = [module.__dict__.get(name) for module in model.modules() for name in CACHES]
    memo.update((id(cache), {}) for cache in caches if cache is not None)
    return copy.deepcopy(model, memo)


def intermediates(model: Any, x: Tensor, levels: Sequence[int], **options: bool) -> list[Any]:
    """What timm's own method returns for `levels`, which ascend: maps (N, chs, h, w), not normalised.

    Raises ThirdPartyError if the model does not take the images.
    """
    options = {"norm": False, "stop_early": True, "intermediates_only": True, **options}
    return third_party(model.forward_intermediates, x, indices=list(levels), output_fmt="NCHW", **options)


def tried(model: nn.Module, size: Sequence[int], levels: Sequence[int]) -> list[Tensor]:
    """The maps of `levels`, which ascend, of one black image of that size (height, width)."""
    with Shortcuts():
        return intermediates(model, _image_for(model, size), levels)


def _image_for(model: nn.Module, size: Sequence[int]) -> Tensor:
    from timm.models import get_model_input_config

    parameter = next(model.parameters())
    channels = get_model_input_config(model)["input_size"][0]
    return torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
