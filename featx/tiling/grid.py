"""Tiles along one axis of an image, and the weights of their cells in the stitched map."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles of one size along an axis. All values are in pixels.

    Tiles start at multiples of the unit and have sides that equal the image's modulo the unit, so that padding that
    depends on the side is that of the whole image, and cells of tiles are cells of the image.

    Attributes:
        length: side of the image.
        size: side of every tile.
        starts: starts of the tiles, ascending; the last one ends with the image.
        before: pixels at the start of a tile whose cells are dropped, except at the border of the image; None to blend.
    """

    length: int
    size: int
    starts: tuple[int, ...]
    before: int | None

    def cells(self, tile_cells: int, reduction: int) -> int:
        """Cells of the whole map, from those of a tile's map."""
        return tile_cells + (self.length - self.size) // reduction

    def weights(self, tile_cells: int, reduction: int) -> list[Tensor]:
        """For each tile, the weight of each of its cells; over all tiles, those of a cell of the map add up to 1."""
        total = torch.zeros(self.cells(tile_cells, reduction), dtype=torch.float64)
        raw = [self._weights(index, tile_cells, reduction) for index in range(len(self.starts))]
        for start, weight in zip(self.starts, raw, strict=True):
            total[start // reduction :][:tile_cells] += weight
        pairs = zip(self.starts, raw, strict=True)
        return [(weight / total[start // reduction :][:tile_cells]).float() for start, weight in pairs]

    def _weights(self, index: int, tile_cells: int, reduction: int) -> Tensor:
        start, stop = self.starts[index], self.starts[index] + self.size
        following = self.starts[index + 1] if index + 1 < len(self.starts) else None
        if self.before is not None:  # 1 from the end of the dropped margin to that of the next tile
            weight = torch.zeros(tile_cells, dtype=torch.float64)
            first = self.before // reduction if index else 0
            last = tile_cells if following is None else (following + self.before - start) // reduction
            weight[first:last] = 1
            return weight
        centers = (torch.arange(tile_cells, dtype=torch.float64) + 0.5) * reduction
        weight = torch.ones_like(centers)
        if index:  # rises over the overlap with the previous tile
            weight *= (centers / (self.starts[index - 1] + self.size - start)).clamp(0, 1)
        if following is not None:
            weight *= ((stop - start - centers) / (stop - following)).clamp(0, 1)
        return weight


def exact_axis(length: int, tile: int, unit: int, before: int, after: int) -> Axis:
    """Tiles whose margins, `before` and `after`, are dropped. ArgumentError if nothing would be left of them."""
    before, after = (-(-margin // unit) * unit for margin in (before, after))
    size = _size(length, tile, unit)
    if size < length and size - before - after < unit:
        raise ArgumentError(
            f"tile={tile}: {before} and {after} pixels at the sides of each tile depend on the pixels beside it, so "
            f"that nothing is left: choose tile={before + after + 2 * unit} or more (larger tiles waste less), or a "
            "number for overlap, which blends the tiles and changes the maps"
        )
    return Axis(length, size, _starts(length, size, (size - before - after) // unit * unit), before)


def blended_axis(length: int, tile: int, unit: int, overlap: int) -> Axis:
    """Tiles that overlap by at least `overlap` pixels and are blended. ArgumentError for more than half of a tile."""
    size = _size(length, tile, unit)
    if overlap > (limit := tile - tile // 2 - unit):
        raise ArgumentError(f"overlap={overlap}: expected at most half of the tile without a cell, {limit} pixels")
    return Axis(length, size, _starts(length, size, max(unit, (size - overlap) // unit * unit)), None)


def _size(length: int, tile: int, unit: int) -> int:
    """The largest side up to `tile` that equals the image's modulo the unit; the image's own if it is not larger."""
    size = tile - (tile - length) % unit
    if length > tile and size < unit:
        raise ArgumentError(f"tile={tile}: expected at least {2 * unit} pixels, two cells of the deepest map")
    return length if length <= tile else size


def _starts(length: int, size: int, step: int) -> tuple[int, ...]:
    starts = [*range(0, length - size, step), length - size] if step else [0]
    assert all(after - before <= step for before, after in pairwise(starts))
    return tuple(starts)
