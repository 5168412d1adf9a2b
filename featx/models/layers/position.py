"""Learnt position embeddings at another size than the one they were learnt at."""

from math import isqrt

import torch
from torch import Tensor

from .bicubic import interpolate_bicubic


def resample_positions(
    embedding: Tensor,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    antialias: bool = True,
    excess: float = 0.0,
) -> Tensor:
    """The embedding (1, prefix + rows * columns, dim) of a grid, for one of `size` cells: (1, prefix + h * w, dim).

    The grid is interpolated bicubically, in float32 whatever the type of `embedding`; the entries of the first `prefix`
    tokens, which have no place in it, stay.

    grid: its rows and columns; None for a square. antialias: low-pass where the grid shrinks. excess: cells by which a
    side counts as longer than it is, which moves every position a little.
    """
    # a tracer's sizes are tensors
    grid = square(int(embedding.shape[1]) - prefix) if grid is None else grid
    # a side that torch.export or a tracer leaves open is no int, and not to be compared: that would close it
    if all(isinstance(cells, int) for cells in size) and size == grid:
        return embedding
    table = embedding[:, prefix:].float().transpose(1, 2).unflatten(2, grid)
    table = interpolate_bicubic(table, size, antialias=antialias, excess=excess)
    return torch.cat([embedding[:, :prefix], table.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def square(positions: int) -> tuple[int, int]:
    """Rows and columns of a square grid of so many positions."""
    return isqrt(positions), isqrt(positions)
