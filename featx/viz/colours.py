"""Channels reduced to colours: the principal components of a map's cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True, slots=True)
class Basis:
    """Which directions among the channels of a level are red, green and blue, and which values are dark and bright.

    mean: (chs,). axes: (components, chs), of unit length, at most three. low, high: (components,), the values along an
    axis that are 0 and 1; equal where the maps do not vary.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Self:
        """The basis of all cells of one level's maps, (chs, h, w) or (N, chs, h, w) each, of any sizes.

        A component spans its 1st to 99th percentile. Raises InputError for NaN and infinite values, and for maps of
        different channels.
        """
        channels = sorted({map_.shape[-3] for map_ in maps})
        if len(channels) != 1:
            raise InputError(f"maps of {channels} channels have no axes in common: pass the maps of one level")
        cells = torch.cat([_cells(map_) for map_ in maps])
        mean = cells.mean(0)
        _, scale, axes = torch.linalg.svd(cells - mean, full_matrices=False)
        # the sign of a component is arbitrary: make its largest weight positive, so that a picture does not depend on
        # luck
        axes = (axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign())[:3]
        low, high = torch.quantile((cells - mean) @ axes.T, torch.tensor([0.01, 0.99], dtype=cells.dtype), dim=0)
        flat = high - low <= 1e-9 * scale.max().clamp(min=1e-300)
        return cls(mean, axes, low, torch.where(flat, low, high))

    def colours(self, map_: Tensor) -> Tensor:
        """(chs, h, w) to (h, w, 3) in [0, 1]; mid-gray where there are fewer components than colours.

        Raises InputError for NaN and infinite values, and for a map of other channels.
        """
        if map_.shape[0] != len(self.mean):
            raise InputError(f"the basis is of {len(self.mean)} channels, the map has {map_.shape[0]}")
        parts = (_cells(map_) - self.mean) @ self.axes.T  # (h w, components)
        span = self.high - self.low
        colours = torch.where(span == 0, 0.5, (parts - self.low) / span.where(span != 0, 1.0)).clamp(0, 1)
        missing = torch.full((len(parts), 3 - parts.shape[1]), 0.5, dtype=parts.dtype)
        return torch.cat([colours, missing], 1).unflatten(0, tuple(map_.shape[1:])).float()


def principal_colours(map_: Tensor) -> Tensor:
    """(chs, h, w) to (h, w, 3) in [0, 1]: the cells' three principal components as red, green and blue.

    As `Basis.of` the map itself.
    """
    return Basis.of([map_]).colours(map_)


def shared_bases(maps: Sequence[Sequence[Tensor]]) -> list[Basis]:
    """One basis per level for the maps of several images, so that a colour means the same in all their pictures.

    maps: what the extractor returned, per image or per batch, levels in the same order.
    """
    return [Basis.of(level) for level in zip(*maps, strict=True)]


def _cells(map_: Tensor) -> Tensor:
    """(chs, h, w) or (N, chs, h, w) to (cells, chs) in double precision."""
    if not map_.isfinite().all():
        raise InputError("the map holds NaN or infinite values, which have no colour: are the weights right?")
    return map_.detach().cpu().double().movedim(-3, -1).flatten(0, -2)
