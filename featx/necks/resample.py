"""Resample: maps at another stride, such as those of a ViT with patches of 14 pixels at a stride of 16."""

from collections.abc import Sequence
from math import floor

from torch import Tensor, nn

from ..errors import ArgumentError, InputError
from .base import Neck, described


class Resample(Neck):
    """Maps of any levels to maps of the same channels at one reduction, by bilinear interpolation.

    Detectors and decoders whose strides are powers of two take a ViT of patch 14 after it: 224 pixels, 16 cells, become
    14 cells of 16 pixels. Each new cell is interpolated at its own place in the image; what remains at the right and at
    the bottom, less than a new cell, is left out.

    Args:
        feature_info: the levels of the maps it takes.
        reduction: of the maps it returns, in pixels per cell.

    Raises:
        ArgumentError: for a reduction that is no positive int.
        InputError: when called, for a map that has less than one new cell along a side.
    """

    def __init__(self, feature_info: object, reduction: int = 16) -> None:
        super().__init__(feature_info)
        if not isinstance(reduction, int) or reduction < 1:
            raise ArgumentError(f"reduction={reduction!r}: expected pixels per cell, a positive int such as 16")
        self.scales = [level.reduction / reduction for level in self.takes]
        self.feature_info = described((level.chs, reduction, f"resized.{i}") for i, level in enumerate(self.takes))
        self.resized = nn.ModuleList(nn.Upsample(scale_factor=scale, mode="bilinear") for scale in self.scales)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        for map_, scale in zip(maps, self.scales, strict=True):
            if min(map_.shape[2:]) * scale < 1:
                raise InputError(
                    f"a map of {map_.shape[2]}x{map_.shape[3]} cells has no whole cell at a reduction of "
                    f"{self.feature_info[0].reduction} pixels: enlarge the images"
                )
        return [resize(map_) for resize, map_ in zip(self.resized, maps, strict=True)]

    def cells(self, cells: Sequence[int]) -> list[int]:
        return [floor(count * scale) for count, scale in zip(cells, self.scales, strict=True)]
