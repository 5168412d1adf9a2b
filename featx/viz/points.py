"""Places in a photograph, and how alike the cells of a map are."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ArgumentError, InputError

# (x, y): shares of the photograph's width and height, from its upper left corner.
Point = tuple[float, float]


def cell_at(point: Point, height: int, width: int) -> tuple[int, int]:
    """(row, column) of the cell that a point is in; ArgumentError if it is outside of the photograph."""
    x, y = point
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ArgumentError(
            f"point=({x:g}, {y:g}) is outside of the photograph: expected shares of its width and height, 0 to 1"
        )
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def similarity(map_: Tensor, point: Point) -> Tensor:
    """Cosine similarity of every cell to the cell at a point: (chs, h, w) or (1, chs, h, w) to (h, w) in [-1, 1].

    point: (x, y), shares of the photograph's width and height, from its upper left corner. A cell whose channels are
    all zero is similar to none: 0. Raises ArgumentError for a point outside, InputError for another shape.
    """
    if map_.ndim == 4 and len(map_) == 1:
        map_ = map_[0]
    if map_.ndim != 3:
        raise InputError(f"expected one image's map (chs, h, w), got shape {tuple(map_.shape)}")
    row, column = cell_at(point, *map_.shape[1:])
    cells = F.normalize(map_.detach().cpu().double(), dim=0, eps=torch.finfo(torch.float64).tiny)
    return torch.einsum("chw,c->hw", cells, cells[:, row, column]).clamp(-1, 1).float()
