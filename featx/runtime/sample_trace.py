"""Trace of an extractor's forward on a sample image, from which the passes and the capture work."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..tracing.copies import structural_copy
from ..tracing.execution_order import channels_of
from ..tracing.module_trace import ModuleTrace, trace_modules
from ..tracing.third_party_errors import REFUSED, third_party
from ..wrappers import FeatureExtractWrapper

SMALL = (128, 128)  # (height, width) of a faster trace, with the same operations as at larger sizes


def trace_forward(extractor: FeatureExtractWrapper, example: Tensor | None) -> ModuleTrace:
    """The trace of a forward of a copy of the extractor, in eval mode.

    The forward computes values, because shape propagation would need imports that take seconds.

    Args:
        extractor: The extractor, which is not modified.
        example: Images (N, in_chans, H, W), of which the first is used. None uses a black image, of a small size if
            the extractor accepts it; `images` of the trace has the default size in any case.

    Raises:
        ContractError: The model does not run.
    """
    if example is not None:
        return _trace(extractor, example[:1])
    images = black_image(extractor, default_size(extractor))
    if extractor._inner.fixed_size is None and default_size(extractor) > SMALL:
        try:
            return replace(_trace_copy(extractor, black_image(extractor, SMALL)), images=images)
        except REFUSED:
            pass  # smaller than the minimum, or not a multiple of the size divisor
    return _trace(extractor, images)


def default_size(extractor: FeatureExtractWrapper) -> tuple[int, int]:
    """The fixed (height, width) of the extractor, or the one that its weights were trained for, 224x224 if unknown."""
    config = extractor.data_config
    return extractor._inner.fixed_size or (config.size if config is not None else (224, 224))


def _trace(extractor: FeatureExtractWrapper, images: Tensor) -> ModuleTrace:
    try:
        return _trace_copy(extractor, images)
    except REFUSED as error:
        raise ContractError(
            f"{type(extractor.source).__name__} does not run on images {tuple(images.shape)} ({error}): "
            "pass example=, images that it supports"
        ) from error


def _trace_copy(extractor: FeatureExtractWrapper, images: Tensor) -> ModuleTrace:
    """The trace of a copy in which every convolution has a bias, which shows whether the forward would read it."""
    twin = inference_copy(extractor)
    weight = next(twin.parameters())
    for module in twin.modules():
        if isinstance(module, nn.modules.conv._ConvNd) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels), requires_grad=False)
    images = images.to(weight.device, weight.dtype)
    return trace_modules(twin, images, lambda model, x: third_party(model, x), before_hooks=True)


def black_image(extractor: FeatureExtractWrapper, size: tuple[int, int]) -> Tensor:
    """A black image (1, in_chans, H, W) of the (height, width), with the dtype and device of the extractor."""
    weight = next(extractor.parameters())
    return torch.zeros(1, channels_of(extractor), *size, device=weight.device, dtype=weight.dtype)


def inference_copy(extractor: FeatureExtractWrapper, *, shares: bool = False) -> FeatureExtractWrapper:
    """A copy whose tensors have no gradients: copies of the extractor's, or with `shares` the same memory."""

    def without_gradient(tensor: Tensor) -> Tensor:
        values = tensor.detach() if shares else tensor.detach().clone()
        return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values

    return structural_copy(extractor, without_gradient)
