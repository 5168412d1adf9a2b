"""Interpolation of learned position embeddings to other grid sizes, also in captured graphs."""

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(
    embedding: Tensor,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    prefix: int = 0,
    antialias: bool = True,
    excess: float = 0.0,
) -> Tensor:
    """Resize a position embedding (1, prefix + rows * columns, dim) to a grid of `size`: (1, prefix + h * w, dim).

    The grid is interpolated bicubically in float32, for any dtype of `embedding`. The entries of the first `prefix`
    tokens, which are not part of the grid, do not change.

    Args:
        embedding: the position embedding.
        size: (h, w) of the new grid.
        prefix: number of prefix tokens.
        grid: rows and columns of the embedding's grid; None for a square.
        antialias: apply a low-pass filter if the grid shrinks.
        excess: cells added to the sides in the computation of the scale, which shifts every position slightly.
    """
    # sizes in a tracer are tensors
    grid = square(int(embedding.shape[1]) - prefix) if grid is None else grid
    # a symbolic side of torch.export or a tracer is not an int; comparing it would specialize the graph
    if all(isinstance(cells, int) for cells in size) and size == grid:
        return embedding
    table = embedding[:, prefix:].float().transpose(1, 2).unflatten(2, grid)
    table = interpolate_bicubic(table, size, antialias=antialias, excess=excess)
    return torch.cat([embedding[:, :prefix], table.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)


def square(positions: int) -> tuple[int, int]:
    """Rows and columns of a square grid with that number of positions."""
    return isqrt(positions), isqrt(positions)


def interpolate_bicubic(grid: Tensor, size: Sequence[int], *, antialias: bool, excess: float = 0.0) -> Tensor:
    """A grid (1, C, rows, columns) at another size: (1, C, *size).

    Compilers, exporters and tracers get two products with matrices: PyTorch's kernel has no gradient for symbolic
    sizes, and no counterpart in ONNX. They differ from the kernel by rounding.

    Args:
        grid: what is interpolated, in float32.
        size: cells along each side; symbolic in a program for any size.
        antialias: low-pass where the grid shrinks.
        excess: cells by which a side counts as longer than it is, which moves every value a little.
    """
    if torch._C._get_tracing_state() or (torch.compiler.is_compiling() and torch.is_grad_enabled()):
        rows, columns = (_weights(grid, axis, size, antialias, excess) for axis in (-2, -1))
        return F.linear(F.linear(grid, columns).transpose(-2, -1), rows).transpose(-2, -1)
    if not excess:
        return F.interpolate(grid, size, mode="bicubic", antialias=antialias)
    factors = [(cells + excess) / side for cells, side in zip(size, grid.shape[-2:], strict=True)]
    return F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)


def _weights(grid: Tensor, axis: int, size: Sequence[int], antialias: bool, excess: float) -> Tensor:
    """What each new cell takes from each old one along an axis: (size[axis], grid.shape[axis])."""
    side, cells, margin = grid.shape[axis], size[axis], 0 if antialias else 2
    growth = (grid.new_zeros(()) + cells + excess) / side  # a tensor: compilers fail on symbolic floats
    old = torch.arange(-margin, side + margin, device=grid.device, dtype=grid.dtype)
    center = (torch.arange(cells, device=grid.device, dtype=grid.dtype) + 0.5) / growth - 0.5
    distance = (old - center.unsqueeze(1)).abs()
    if antialias:
        weights = _cubic(torch.minimum(distance, distance * growth), -0.5)
        return weights / weights.sum(1, keepdim=True)
    # cells beyond an edge have the value of the edge
    inside = old.clamp(0, side - 1).unsqueeze(1) == old[margin:-margin]
    return _cubic(distance, -0.75) @ inside.to(grid.dtype)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The kernel of cubic convolution with the parameter a, which reaches two cells far."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
