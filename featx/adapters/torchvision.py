"""Backbones for torchvision's detectors and segmenters (https://pytorch.org/vision/stable/models.html).

Its detectors normalize images themselves: `detector_arguments` passes them the statistics that the weights expect, so
pass images in [0, 1].
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2
from typing import Any

from torch import Tensor, nn

from ..errors import ArgumentError, ContractError
from ..features import Levels
from ..wrappers import FeatureExtractWrapper
from .requirements import maps_of, require_levels, require_source, side_multiple, statistics


class NamedMaps(nn.Module):
    """Images (N, C, H, W) to an OrderedDict of maps, the backbone interface of torchvision's models.

    Attributes:
        out_channels: channels of all maps, or a list with those of each.
    """

    def __init__(self, source: FeatureExtractWrapper, names: Sequence[str], out_channels: int | list[int]) -> None:
        super().__init__()
        self.body, self.names, self.out_channels = source, tuple(names), out_channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(zip(self.names, maps_of(self.body, x), strict=True))


def detection_backbone(source: nn.Module) -> NamedMaps:
    """Convert an extractor to a backbone for FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet and FCOS.

    Maps are named "0", "1", ….

    Args:
        source: a feature extractor.

    Raises:
        ArgumentError: `source` is not a feature extractor.
        ContractError: levels differ in channels; these detectors share their heads among levels.
    """
    source = require_source(source)
    channels = source.feature_info.channels()
    if len(set(channels)) != 1:
        raise ContractError(
            f"torchvision's detectors share their heads among levels of one number of channels, these have {channels}: "
            "put featx.necks.FPN or ChannelMapper after the extractor with featx.necks.Pipeline"
        )
    return NamedMaps(source, _numbers(source), channels[0])


def ssd_backbone(source: nn.Module) -> NamedMaps:
    """Convert an extractor to a backbone for SSD. Its levels may differ in channels."""
    source = require_source(source)
    return NamedMaps(source, _numbers(source), source.feature_info.channels())


def segmentation_backbone(source: nn.Module) -> NamedMaps:
    """Convert an extractor to a backbone for DeepLabV3 and FCN.

    The last map is for the classifier, a map before it for the auxiliary classifier.

    Args:
        source: a feature extractor of one level, or of two with `out_indices=[-2, -1]`.

    Raises:
        ArgumentError: `source` is not a feature extractor.
        ContractError: there are more than two levels.
    """
    source = require_source(source)
    if len(source.feature_info) != 1:
        require_levels(source, 2, "a segmenter with an auxiliary classifier")
    names = ("aux", "out")[-len(source.feature_info) :]
    return NamedMaps(source, names, source.feature_info.channels())


def lraspp_backbone(source: nn.Module) -> NamedMaps:
    """Convert an extractor to a backbone for LRASPP. ContractError unless it has two levels, the finer one first."""
    source = require_source(source)
    require_levels(source, 2, "LRASPP")
    fine, coarse = source.feature_info.reduction()
    if fine > coarse:
        raise ContractError(f"LRASPP takes the finer map first, these have strides of {fine} and {coarse} pixels")
    return NamedMaps(source, ("low", "high"), source.feature_info.channels())


def detector_arguments(detector: type[nn.Module], source: nn.Module) -> dict[str, Any]:
    """Keyword arguments of torchvision's detectors that depend on the source.

    These are `image_mean` and `image_std`, anchors for the levels, the poolers of two-stage detectors, and the size
    divisor.

    Args:
        detector: FasterRCNN, MaskRCNN, KeypointRCNN, RetinaNet, FCOS or SSD.
        source: a feature extractor.

    Raises:
        ArgumentError: `detector` is another class, or the source has no mean and std.
        ContractError: the detector cannot use the levels.
    """
    from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
    from torchvision.models.detection.ssd import SSD

    source = require_source(source)
    builders = {FasterRCNN: _two_stage, RetinaNet: _retinanet, FCOS: _fcos, SSD: _ssd}
    build = next((build for cls, build in builders.items() if issubclass(detector, cls)), None)
    if build is None:
        known = [*(cls.__name__ for cls in builders), "MaskRCNN", "KeypointRCNN"]
        raise ArgumentError(f"{detector.__name__}: expected one of {known}")
    data = statistics(source)
    size = {} if detector is SSD else {"size_divisible": _multiple(source)}
    normalization = {"image_mean": list(data.mean), "image_std": list(data.std)}
    return {**normalization, **size, **build(source.feature_info, detector)}


def _numbers(source: FeatureExtractWrapper) -> list[str]:
    return [str(level) for level in range(len(source.feature_info))]


def _multiple(source: FeatureExtractWrapper) -> int:
    """Pixels to pad the sides of batches to, so that cells have the strides that anchors and boxes assume.

    torchvision pads to 32 pixels, and levels of stride 64 and more get the remainder.
    """
    strides = source.feature_info.reduction()
    if all(stride.bit_count() == 1 for stride in strides):
        return side_multiple(source, 32)
    return side_multiple(source, max((stride for stride in strides if stride < 64), default=strides[0]))


def _two_stage(levels: Levels, detector: type[nn.Module]) -> dict[str, Any]:
    """Anchors of one size per level, 8 cells (https://arxiv.org/abs/1612.03144), or of five sizes on a single level."""
    from torchvision.models.detection import KeypointRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    strides = levels.reduction()
    if any(deeper != 2 * finer for finer, deeper in pairwise(strides)):
        raise ContractError(
            f"{detector.__name__} assigns boxes to levels by size, and their strides must double: these have "
            f"{strides} pixels; choose others with out_indices, or one level alone"
        )
    sizes = (
        tuple((8 * s,) for s in strides) if len(strides) > 1 else (tuple(k * strides[0] for k in (2, 4, 8, 16, 32)),)
    )
    pooled = {str(i): stride for i, stride in enumerate(strides) if stride <= 32 or i == 0}  # P6 is for proposals only
    poolers = {"box_roi_pool": _pooler(pooled, 7)}
    if issubclass(detector, MaskRCNN):
        poolers["mask_roi_pool"] = _pooler(pooled, 14)
    if issubclass(detector, KeypointRCNN):
        poolers["keypoint_roi_pool"] = _pooler(pooled, 14)
    return {"rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)), **poolers}


def _pooler(levels: Mapping[str, int], cells: int) -> nn.Module:
    """RoI align to cells x cells, from the level whose stride fits the size of each box.

    As in torchvision, a box of 224 pixels is assigned to stride 16, and other sizes in proportion. Scales are set here
    from the exact strides, because torchvision rounds them to powers of two.
    """
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.poolers import initLevelMapper

    strides = list(levels.values())
    finest = round(log2(strides[0]))
    size: Any = 224 * strides[0] / 2**finest  # torchvision annotates it as int
    pooler: Any = MultiScaleRoIAlign(list(levels), cells, 2)
    pooler.scales = [1 / stride for stride in strides]
    pooler.map_levels = initLevelMapper(finest, finest + len(strides) - 1, canonical_scale=size)
    return pooler


def _retinanet(levels: Levels, detector: type[nn.Module]) -> dict[str, Any]:
    """Anchors of three sizes per octave, from 4 cells (https://arxiv.org/abs/1708.02002)."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    del detector
    sizes = tuple(tuple(int(4 * stride * 2 ** (k / 3)) for k in range(3)) for stride in levels.reduction())
    return {"anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))}


def _fcos(levels: Levels, detector: type[nn.Module]) -> dict[str, Any]:
    """One anchor point per cell (https://arxiv.org/abs/1904.01355)."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    del detector
    sizes = tuple((stride,) for stride in levels.reduction())
    return {"anchor_generator": AnchorGenerator(sizes, ((1.0,),) * len(sizes))}


def _ssd(levels: Levels, detector: type[nn.Module]) -> dict[str, Any]:
    """Default boxes of two ratios and their inverses at each level (https://arxiv.org/abs/1512.02325)."""
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    del detector
    return {"anchor_generator": DefaultBoxGenerator([[2, 3]] * len(levels), steps=levels.reduction())}
