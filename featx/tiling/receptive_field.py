"""The receptive field of an extractor: how far around its own pixels a cell depends on the image.

It is measured, not derived from layers: in an image whose right half is NaN, those cells of the left half become NaN
that depend on a pixel of the right half, whatever the weights. Operations over the whole image, such as attention and
squeeze-and-excitation, turn all cells into NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..image_checks import dtypes_of
from ..tracing.execution_order import channels_of
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in

SHORTEST = 8  # side of the first measured image, in cells of the deepest map
LONGEST = 4096  # side of the last one in pixels


@dataclass(frozen=True, slots=True)
class Margins:
    """Pixels above, below, left and right of a cell's own pixels on which its value depends, the most of all levels."""

    top: int
    bottom: int
    left: int
    right: int


def unit_of(extractor: FeatureExtractWrapper) -> int:
    """Pixels of the smallest step that is a whole number of cells in every level."""
    return lcm(*extractor.feature_info.reduction(), extractor.size_divisor)


@torch.no_grad()
def receptive_margins(extractor: FeatureExtractWrapper, unit: int | None = None) -> Margins | None:
    """Measure the receptive field of an extractor in eval mode.

    Args:
        extractor: the extractor. Its time and memory are those of a few images.
        unit: pixels that the start of a part of the image is a multiple of; by default those of `unit_of`.

    Returns:
        The margins; None if cells depend on the whole image, or on more than 2048 pixels at a side.

    Raises:
        ArgumentError: the extractor is in training mode, or accepts one image size only.
    """
    if extractor.training:
        raise ArgumentError("the receptive field is that of inference: call .eval() first")
    if extractor.fixed_size is not None:
        raise ArgumentError(f"this extractor accepts images of {extractor.fixed_size} alone, so that it has no margins")
    margins: list[int] = []
    for axis in (2, 3):
        for is_after in (False, True):  # pixels before a cell, pixels after it
            margin = _margin(extractor, unit or unit_of(extractor), axis, is_after)
            if margin is None:
                return None
            margins.append(margin)
    return Margins(*margins)


def _margin(extractor: FeatureExtractWrapper, unit: int, axis: int, is_after: bool) -> int | None:
    """Pixels before or after a cell on which it depends; None if no length is enough."""
    # padding may depend on whether sides are even: those of the first image are at every level, of the second at none
    odd = (0, 1) if extractor.size_divisor == 1 else (0,)
    previous = None
    for length in _lengths(unit):
        margin = max(_clean_margin(extractor, unit, axis, length + extra, is_after) for extra in odd)
        # dilated kernels may reach over the whole image into its padding: the margin is that which does not grow
        if margin == previous and margin < length // 2 - unit:
            return margin
        previous = margin
    return None


def _clean_margin(extractor: FeatureExtractWrapper, unit: int, axis: int, length: int, is_after: bool) -> int:
    """Pixels of the cells that become NaN in that half of an image whose pixels are not."""
    middle, margin = length // 2 // unit * unit, 0
    size = (length, 2 * unit) if axis == 2 else (2 * unit, length)
    image = _half_nan(extractor, size, axis, middle, is_after)
    for level, map_ in zip(extractor.feature_info, maps_in(extractor(image)), strict=True):
        nan = map_.isnan().any(1)[0].any(3 - axis)  # per row, or per column
        cell = middle // level.reduction
        clean = nan[:cell] if is_after else nan[cell:]
        margin = max(margin, int(clean.sum()) * level.reduction)
    return margin


def _lengths(unit: int) -> Iterator[int]:
    length = SHORTEST * unit
    while length <= max(LONGEST, 2 * SHORTEST * unit):
        yield length
        length *= 2


def _half_nan(
    extractor: FeatureExtractWrapper, size: tuple[int, int], axis: int, middle: int, is_after: bool
) -> Tensor:
    """An image of zeros that is NaN after or before `middle` along the axis."""
    parameter = next(extractor.parameters(), torch.zeros(()))
    dtype = next(iter(dtypes_of(extractor)), torch.float32)
    image = torch.zeros(1, channels_of(extractor), *size, dtype=dtype, device=parameter.device)
    start, count = (middle, size[axis - 2] - middle) if is_after else (0, middle)
    image.narrow(axis, start, count).fill_(torch.nan)
    return image
