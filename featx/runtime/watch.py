"""The trace of an extractor's forward that passes read, and the images it is of."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..tracing.copies import structural_copy
from ..tracing.execution_order import channels_of
from ..tracing.module_trace import ModuleTrace, trace_modules
from ..tracing.third_party_errors import REFUSED, third_party
from ..wrappers import FeatureExtractWrapper

# The side of an image that shows as much as a larger one.
SMALL = (128, 128)


def watch(extractor: FeatureExtractWrapper, example: Tensor | None) -> ModuleTrace:
    """A forward of a copy, for one image: the example's first, or a black one, small if the model takes small ones.

    With values, because shapes alone would take PyTorch longer: seconds to import what finds them. Raises ContractError
    if the model does not run.
    """
    if example is not None:
        return _tried(extractor, example[:1])
    images = _black(extractor, own_size(extractor))
    if extractor._inner.fixed_size is None and own_size(extractor) > SMALL:
        try:
            return replace(_run(extractor, _black(extractor, SMALL)), images=images)
        except REFUSED:
            pass  # too small, or no multiple of what it takes
    return _tried(extractor, images)


def own_size(extractor: FeatureExtractWrapper) -> tuple[int, int]:
    """The only (height, width) it takes, or the one its weights were made for."""
    stated = extractor.data_config
    return extractor._inner.fixed_size or (stated.size if stated is not None else (224, 224))


def _tried(extractor: FeatureExtractWrapper, images: Tensor) -> ModuleTrace:
    try:
        return _run(extractor, images)
    except REFUSED as error:
        raise ContractError(
            f"{type(extractor.source).__name__} does not run on images {tuple(images.shape)} ({error}): "
            "pass example=, images that it takes"
        ) from error


def _black(extractor: FeatureExtractWrapper, size: tuple[int, int]) -> Tensor:
    weight = next(extractor.parameters())
    return torch.zeros(1, channels_of(extractor), *size, device=weight.device, dtype=weight.dtype)


def copy_of(extractor: FeatureExtractWrapper, *, shares: bool = False) -> FeatureExtractWrapper:
    """A copy whose tensors want no gradient: its own, or those of the extractor if it `shares` them."""

    def unwanting(tensor: Tensor) -> Tensor:
        values = tensor.detach() if shares else tensor.detach().clone()
        return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values

    return structural_copy(extractor, unwanting)


def _run(extractor: FeatureExtractWrapper, images: Tensor) -> ModuleTrace:
    """Convolutions without a bias are given one, to see whether they would use it."""
    twin = copy_of(extractor)
    weight = next(twin.parameters())
    for module in twin.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels), requires_grad=False)
    images = images.to(weight.device, weight.dtype)
    return trace_modules(twin, images, lambda model, x: third_party(model, x), before_hooks=True)
