"""DPT of segmentation_models_pytorch (https://arxiv.org/abs/2103.13413) on any plain transformer."""

from math import log2
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError
from ..wrappers import FeatureExtractWrapper
from .requirements import require_package, require_source
from .smp import INSTALL


class TokenEncoder(nn.Module):
    """Images to maps (N, chs, h, w) and prefix tokens (N, tokens, chs), or None in place of missing tokens."""

    def __init__(self, source: FeatureExtractWrapper, prefix: bool) -> None:
        super().__init__()
        levels = source.feature_info
        self.body, self.has_prefix_tokens = source, prefix
        self.out_channels, self.output_strides = levels.channels(), levels.reduction()
        self.output_stride = levels[-1].reduction

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        pairs: Any = self.body(x)
        return [map_ for _, map_ in pairs], [prefix if self.has_prefix_tokens else None for prefix, _ in pairs]


def dpt(
    source: nn.Module,
    classes: int,
    *,
    readout: Literal["ignore", "add", "cat"] = "cat",
    intermediate_channels: tuple[int, ...] = (256, 512, 1024, 1024),
    fusion_channels: int = 256,
) -> nn.Module:
    """The package's DPT on a plain transformer: images (N, C, H, W) to logits (N, classes, H, W).

    H and W must be multiples of the patch size. A patch size that is not a power of two, such as 14 pixels, is decoded
    as the nearest power of two, and the logits are resized to the image. Maps with an odd number of cells, which the
    decoder halves and doubles, are resized to match.

    Args:
        source: an extractor of four levels, built with `output="tokens"`.
        classes: number of classes.
        readout: how the decoder uses prefix tokens; "ignore" for a model without them.
        intermediate_channels: channels of the decoder's inputs.
        fusion_channels: channels of the decoder's fusion blocks.

    Raises:
        ArgumentError: `source` is not such an extractor, or `readout` is invalid.
        ContractError: the source does not have four levels.
        MissingPackageError: segmentation_models_pytorch is not installed.
    """
    smp = require_package("segmentation_models_pytorch", INSTALL)
    decoder = require_package("segmentation_models_pytorch.decoders.dpt.decoder", INSTALL)
    source = require_source(source)
    prefix = _prefix_tokens(source)
    if readout not in ("ignore", "add", "cat") or (readout != "ignore" and not prefix):
        raise ArgumentError(f"readout={readout!r}: choose 'ignore', or for prefix tokens 'add' or 'cat'")
    patch = source.feature_info[-1].reduction
    stride = 2 ** round(log2(patch))
    model = smp.DPT.__new__(smp.DPT)
    smp.base.SegmentationModel.__init__(model)  # DPT.__init__ would build a timm encoder
    model.encoder = TokenEncoder(source, bool(prefix))
    model.decoder = decoder.DPTDecoder(
        encoder_out_channels=model.encoder.out_channels,
        encoder_output_strides=[stride] * len(source.feature_info),
        encoder_has_prefix_tokens=model.encoder.has_prefix_tokens,
        readout=readout,
        intermediate_channels=intermediate_channels,
        fusion_channels=fusion_channels,
    )
    for block in model.decoder.fusion_blocks:
        block.register_forward_pre_hook(_resize_previous)
    model.segmentation_head = decoder.DPTSegmentationHead(fusion_channels, classes, upsampling=2 * patch / stride)
    model.classification_head, model.name = None, f"dpt-featx-{type(source.source).__name__}"
    model.initialize()
    return model


def _resize_previous(block: nn.Module, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    """Forward pre-hook of a fusion block: resize the second input to the size of the map it is added to."""
    del block
    feature, previous = inputs
    if feature is None or previous is None or previous.shape == feature.shape:
        return None
    return feature, F.interpolate(previous, feature.shape[2:], mode="bilinear", align_corners=True)


def _prefix_tokens(source: FeatureExtractWrapper) -> int:
    """The number of prefix tokens, at the source's image size."""
    from ..tracing.execution_order import meta_images, run_on_meta

    if source._output != "tokens":
        raise ArgumentError("DPT takes tokens: create the source with output='tokens'")
    if len(source.feature_info) != 4:
        raise ContractError(f"DPT takes four levels of a plain transformer, this source has:\n{source.feature_info}")
    return run_on_meta(source, meta_images(source))[0][0].shape[1]
