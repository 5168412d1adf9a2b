"""Learnt position embeddings at another size than the one they were learnt at."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(
    embedding: Tensor, size: tuple[int, int], *, prefix: int = 0, antialias: bool = True, excess: float = 0.0
) -> Tensor:
    """The embedding (1, prefix + side * side, dim) of a square grid, for one of `size` cells: (1, prefix + h * w, dim).

    The grid is interpolated bicubically, in float32 whatever the type of `embedding`; the entries of the first `prefix`
    tokens, which have no place in it, stay. antialias: low-pass where the grid shrinks. excess: cells by which a side
    counts as longer than it is, which moves every position a little.
    """
    side = round((embedding.shape[1] - prefix) ** 0.5)
    # a side that torch.export leaves open is no int, and not to be compared: that would close it
    if all(isinstance(cells, int) for cells in size) and size == (side, side):
        return embedding
    grid = embedding[:, prefix:].float().transpose(1, 2).unflatten(2, (side, side))
    if excess:
        factors = tuple((cells + excess) / side for cells in size)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)
    else:
        grid = F.interpolate(grid, size, mode="bicubic", antialias=antialias)
    return torch.cat([embedding[:, :prefix], grid.flatten(2).transpose(1, 2).to(embedding.dtype)], dim=1)
