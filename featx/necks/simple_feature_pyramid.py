"""SimpleFeaturePyramid: a pyramid from the last map of a plain ViT (ViTDet, https://arxiv.org/abs/2203.16527).

With a level for each stride it takes each map from a block of its own, as BEiT does for segmentation
(https://arxiv.org/abs/2106.08254).
"""

from collections.abc import Iterator, Sequence
from math import log2
from typing import TypeVar

from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..features import Levels
from ..models.layers.norm import LayerNorm2d
from .base import Neck, levels_from, levels_of

T = TypeVar("T")


class SimpleFeaturePyramid(Neck):
    """One map, or one per stride, to maps of several strides: transposed convolutions or max pooling, then two others.

    Parameter names and outputs are those of detectron2's SimpleFeaturePyramid, whose checkpoints have it under
    `backbone.`. Sides are multiples of the map's, not of the image's: a ViT of patch 16 that pads 97 pixels to 7 cells
    gives 28, 14, 7 and 3 cells.

    Args:
        feature_info: the level of the input map; or as many levels of one reduction as `scale_factors`, shallow to
            deep. A single level, `[feature_info[-1]]`, is accepted from any model.
        chs: channels of the output maps.
        scale_factors: sides of the output maps relative to the input map, each half of the previous one. For a patch of
            16 pixels, 4, 2, 1 and 0.5 give strides of 4, 8, 16 and 32; `MaxPoolLevel` adds 64.

    Raises:
        ArgumentError: `scale_factors` are not powers of two that halve.
        ContractError: there are neither one level nor as many as `scale_factors`, the model already has a pyramid, or
            strides are not whole pixels.
        InputError: when called with a map that is too small to be pooled.
    """

    def __init__(
        self, feature_info: object, chs: int = 256, *, scale_factors: Sequence[float] = (4.0, 2.0, 1.0, 0.5)
    ) -> None:
        require_halving(scale_factors)
        sources = _sources(feature_info, len(scale_factors))
        strides = strides_at(sources[0].reduction, scale_factors)
        super().__init__(sources)
        self.scale_factors = tuple(scale_factors)
        names = [f"simfp_{int(log2(stride))}" for stride in strides]
        self.feature_info = levels_from((chs, *row) for row in zip(strides, names, strict=True))
        for name, scale, source in zip(names, scale_factors, self._one_each(list(sources)), strict=True):
            self.add_module(name, nn.Sequential(*_stage(source.chs, chs, scale)))

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        if min(self.cells([min(maps[0].shape[2:])])) < 1:
            raise InputError(
                f"a map of {maps[0].shape[2]}x{maps[0].shape[3]} cells cannot be pooled to {min(self.scale_factors)} "
                "of its sides: enlarge the images, or leave out small scale_factors"
            )
        rows = zip(self.feature_info.names(), self._one_each(maps), strict=True)
        return [self.get_submodule(name)(map_) for name, map_ in rows]

    def cells(self, cells: Sequence[int]) -> list[int]:
        return [int(cells[0] * scale) for scale in self.scale_factors]

    def _one_each(self, items: list[T]) -> list[T]:
        """One item for each scale factor: a single one is that of all."""
        return items * len(self.scale_factors) if len(items) == 1 else items


class NormedConv(nn.Conv2d):
    """A convolution followed by layer norm over channels."""

    def __init__(self, in_chs: int, chs: int, kernel: int) -> None:
        super().__init__(in_chs, chs, kernel, padding=kernel // 2, bias=False)
        self.norm = LayerNorm2d(chs, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


def _stage(in_chs: int, chs: int, scale: float) -> Iterator[nn.Module]:
    """Layers that scale the sides of a map by `scale`. Each doubling halves the channels."""
    if scale < 1:
        yield nn.MaxPool2d(int(1 / scale), int(1 / scale))
    for doubling in range(int(log2(scale))):
        if doubling:
            yield LayerNorm2d(in_chs, eps=1e-6)
            yield nn.GELU()
        yield nn.ConvTranspose2d(in_chs, in_chs // 2, 2, 2)
        in_chs //= 2
    yield NormedConv(in_chs, chs, 1)
    yield NormedConv(chs, chs, 3)


def _sources(feature_info: object, count: int) -> Levels:
    """Levels of the input maps; ContractError unless there are 1 or `count`, of a model with a single stride."""
    levels = levels_of(feature_info, "SimpleFeaturePyramid")
    strides = set(levels.reduction())
    if len(levels) not in (1, count) or len(strides) > 1:
        raise ContractError(
            f"SimpleFeaturePyramid takes one map, or {count} of one reduction for its {count} scale_factors, got\n"
            f"{levels}\nChoose the last: out_indices=[-1]"
        )
    if isinstance(feature_info, Levels):
        strides |= {row["reduction"] for row in feature_info.info}
    if len(strides) > 1:
        raise ContractError(
            f"SimpleFeaturePyramid is for models of a single stride; this one has maps at {sorted(strides)} pixels, "
            "which are a pyramid already: take them with out_indices and use FPN"
        )
    return levels


def require_halving(scales: Sequence[float]) -> None:
    """Raise ArgumentError unless each scale is a power of two and half of the previous one."""
    if not scales or any(scale <= 0 or log2(scale) % 1 or scale != scales[0] / 2**i for i, scale in enumerate(scales)):
        raise ArgumentError(
            f"scale_factors={tuple(scales)}: expected powers of two, each half of the one before, as (4, 2, 1, 0.5)"
        )


def strides_at(reduction: int, scales: Sequence[float]) -> list[int]:
    """Pixels per cell of maps whose sides are scaled by these factors. ContractError unless they are whole numbers."""
    broken = [f"{reduction / scale:g}" for scale in scales if reduction / scale % 1]
    if broken:
        longer = (*scales, *(scales[-1] / 2**i for i in range(1, len(broken) + 1)))
        whole = tuple(scale for scale in longer if not reduction / scale % 1)
        raise ContractError(
            f"cells of {reduction} pixels would be split into cells of {' and '.join(broken)} pixels, and reductions "
            f"are whole numbers: choose other scale_factors, as {whole}, or put featx.necks.Resample(feature_info, 16) "
            "before this neck"
        )
    return [int(reduction / scale) for scale in scales]
