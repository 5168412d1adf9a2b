"""What each level of a model costs, counted on shapes alone."""

from dataclasses import dataclass

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .arguments import require_size
from .features import FeatureInfo
from .tracing.execution_order import meta_images, run_on_meta
from .wrappers import FeatureExtractWrapper


@dataclass(frozen=True, slots=True)
class LevelCost:
    """A level, its map (h, w) for one image, and what an extractor that goes this deep and no deeper holds and does.

    parameters: numbers it keeps. macs: multiply-accumulates of convolutions and matrix products per image.
    """

    level: FeatureInfo
    map_size: tuple[int, int]
    parameters: int
    macs: int


def describe(model: nn.Module, size: tuple[int, int]) -> list[LevelCost]:
    """The cost of each level of a model with `feature_info` for images of `size` (height, width), shallow to deep."""
    size = require_size(size, "size")
    count = len(FeatureExtractWrapper(model).feature_info)
    return [_cost(FeatureExtractWrapper(model, [level]), size) for level in range(count)]


def _cost(extractor: FeatureExtractWrapper, size: tuple[int, int]) -> LevelCost:
    images = meta_images(extractor, size)
    with FlopCounterMode(display=False) as counter:
        maps = run_on_meta(extractor, images)
    height, width = maps[0].shape[-2:]
    parameters = sum(parameter.numel() for parameter in extractor.parameters())
    macs = counter.get_total_flops() // 2 // len(images)
    return LevelCost(extractor.feature_info[0], (height, width), parameters, macs)
