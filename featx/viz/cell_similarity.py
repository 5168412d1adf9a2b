"""Points in a photograph, and the cosine similarity of a map's cells to the cell at a point."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError, InputError

# (x, y) as fractions of the photograph's width and height, from its upper left corner.
Point = tuple[float, float]


def cell_at(point: Point, height: int, width: int) -> tuple[int, int]:
    """(row, column) of the cell that contains a point. ArgumentError for a point outside the photograph."""
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ArgumentError(
            f"point=({x:g}, {y:g}) is outside of the photograph: expected shares of its width and height, 0 to 1"
        )
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def similarity(map_: Tensor, point: Point) -> Tensor:
    """Cosine similarity of every cell of a map to the cell at a point: (h, w) in [-1, 1].

    Args:
        map_: (chs, h, w) or (1, chs, h, w). A cell whose channels are all zero has similarity 0.
        point: (x, y) as fractions of the photograph's width and height, from its upper left corner.

    Raises:
        ArgumentError: the point is outside the photograph.
        InputError: the map has another shape.
    """
    if map_.ndim == 4 and len(map_) == 1:
        map_ = map_[0]
    if map_.ndim != 3:
        raise InputError(f"expected one image's map (chs, h, w), got shape {tuple(map_.shape)}")
    row, column = cell_at(point, *map_.shape[1:])
    cells = F.normalize(map_.detach().cpu().double(), dim=0, eps=torch.finfo(torch.float64).tiny)
    return torch.einsum("chw,c->hw", cells, cells[:, row, column]).clamp(-1, 1).float()
