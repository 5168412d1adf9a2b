"""Colors from principal component analysis (PCA) of a map's cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class Basis:
    """The principal components of a level's channels that are shown as red, green and blue.

    Attributes:
        mean: (chs,), subtracted from each cell.
        axes: (components, chs), unit vectors, at most three.
        low: (components,), the value along each axis that is shown as 0.
        high: (components,), the value along each axis that is shown as 1; equal to `low` where the maps are constant.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Self:
        """Fit a basis to all cells of one level's maps. Each color spans the 1st to 99th percentile of its component.

        Args:
            maps: (chs, h, w) or (N, chs, h, w) each, of any height and width.

        Raises:
            InputError: a map holds NaN or infinite values, or the maps differ in their number of channels.
        """
        channels = sorted({map_.shape[-3] for map_ in maps})
        if len(channels) != 1:
            raise InputError(f"maps of {channels} channels have no axes in common: pass the maps of one level")
        cells = torch.cat([_cells(map_) for map_ in maps])
        mean = cells.mean(0)
        _, scale, axes = torch.linalg.svd(cells - mean, full_matrices=False)
        # The sign of a component is arbitrary: make its largest weight positive, so that figures are reproducible.
        axes = (axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign())[:3]
        low, high = torch.quantile((cells - mean) @ axes.T, torch.tensor([0.01, 0.99], dtype=cells.dtype), dim=0)
        flat = high - low <= 1e-9 * scale.max().clamp(min=1e-300)
        return cls(mean, axes, low, torch.where(flat, low, high))

    def colors(self, map_: Tensor) -> Tensor:
        """Project a map on the basis: (chs, h, w) to RGB (h, w, 3) in [0, 1]. Missing components are 0.5.

        Raises:
            InputError: the map holds NaN or infinite values, or its number of channels is not the basis's.
        """
        if map_.shape[0] != len(self.mean):
            raise InputError(f"the basis is of {len(self.mean)} channels, the map has {map_.shape[0]}")
        parts = (_cells(map_) - self.mean) @ self.axes.T  # (h w, components)
        span = self.high - self.low
        colors = torch.where(span == 0, 0.5, (parts - self.low) / span.where(span != 0, 1.0)).clamp(0, 1)
        missing = torch.full((len(parts), 3 - parts.shape[1]), 0.5, dtype=parts.dtype)
        return torch.cat([colors, missing], 1).unflatten(0, tuple(map_.shape[1:])).float()


def principal_colors(map_: Tensor) -> Tensor:
    """RGB colors of a map from its own three principal components: (chs, h, w) to (h, w, 3) in [0, 1].

    Raises:
        InputError: the map holds NaN or infinite values.
    """
    return Basis.of([map_]).colors(map_)


def shared_bases(maps: Sequence[Sequence[Tensor]]) -> list[Basis]:
    """One basis per level, fitted to the maps of several images, so that colors are comparable between them.

    Args:
        maps: the extractor's output per image or per batch, with levels in the same order.
    """
    return [Basis.of(level) for level in zip(*maps, strict=True)]


def _cells(map_: Tensor) -> Tensor:
    """Flatten (chs, h, w) or (N, chs, h, w) to (cells, chs) in float64."""
    if not map_.isfinite().all():
        raise InputError("the map holds NaN or infinite values, which have no color: are the weights right?")
    return map_.detach().cpu().double().movedim(-3, -1).flatten(0, -2)
