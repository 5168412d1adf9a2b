"""Rotary position embeddings of a grid of tokens, https://arxiv.org/abs/2104.09864, in two dimensions.

Channels of queries and keys are rotated in pairs, by angles that grow with the row or the column of the token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

# symbolic tracers record this call as a whole, because it branches on sizes
torch.fx.wrap("grid_positions")


@dataclass(frozen=True, slots=True)
class RopeStyle:
    """How angles follow from positions.

    Attributes:
        temperature: ratio of the largest to the smallest wavelength.
        reference: cells along the side of a grid that positions are rescaled to, for any size (EVA-02); None for
            positions in cells.
        offset: position of the first cell, before rescaling.
        columns_first: whether the first half of the pairs of an axial embedding is rotated by columns, not rows.
        centered: positions of the centers of cells in [-1, 1], times 2 pi (DINOv3).
        halves: channel i is paired with channel i + chs / 2, instead of 2i with 2i + 1.
        learned: frequencies of rows and columns per block and head are parameters (https://arxiv.org/abs/2403.13298),
            instead of axial: half of the pairs for rows, and half for columns.
    """

    temperature: float = 10000.0
    reference: int | None = None
    offset: float = 0.0
    columns_first: bool = False
    centered: bool = False
    halves: bool = False
    learned: bool = False


class Rope(nn.Module):
    """Rotary position embeddings of a transformer.

    Args:
        style: how angles follow from positions.
        depth: number of blocks.
        heads: number of heads.
        chs: channels of a head, a multiple of 4.
        prefix: number of prefix tokens, which are not rotated.
    """

    def __init__(self, style: RopeStyle, depth: int, heads: int, chs: int, prefix: int) -> None:
        super().__init__()
        self.style, self.depth, self.chs, self.prefix = style, depth, chs, prefix
        self.freqs = nn.Parameter(drawn_frequencies(depth, heads, chs, style.temperature)) if style.learned else None

    def forward(self, size: Sequence[int], device: torch.device, added: int = 0) -> list[Tensor]:
        """Cosines and sines (2, heads or 1, prefix + h * w + added, chs) per block for a grid of `size`, in float32.

        The `added` tokens after the grid are not rotated.
        """
        style = self.style
        x = grid_positions(size, device, style.centered, style.reference, style.offset)
        x = x.flip(-1) if style.columns_first else x
        if self.freqs is None:
            return [self._table(self._axial_angles(x).unsqueeze(0), added)] * self.depth
        first, second = (x[:, axis, None] * self.freqs[axis].float().unsqueeze(-2) for axis in (0, 1))
        angles = first + second
        return [self._table(angles[block], added) for block in range(self.depth)]

    def _axial_angles(self, x: Tensor) -> Tensor:
        """Angles (h * w, chs / 2) of positions (h * w, 2)."""
        count = self.chs // 4
        exponents = torch.arange(count, device=x.device, dtype=torch.float32) / count
        wavelengths = self.style.temperature**exponents
        # float32 rounds the two alike to what the authors' code computes
        x = x.unsqueeze(-1)
        return (2 * math.pi * x / wavelengths if self.style.centered else x * (1 / wavelengths)).flatten(1)

    def _table(self, angles: Tensor, added: int) -> Tensor:
        """Cosines and sines of angles (heads, h * w, chs / 2), with an angle of 0 for prefix and added tokens."""
        rows = []
        for values, at_zero in ((angles.cos(), 1.0), (angles.sin(), 0.0)):
            values = torch.cat([values, values], -1) if self.style.halves else values.repeat_interleave(2, -1)
            rows.append(F.pad(values, (0, 0, self.prefix, added), value=at_zero))
        return torch.stack(rows)


def grid_positions(
    size: Sequence[int], device: torch.device, centered: bool, reference: int | None, offset: float
) -> Tensor:
    """Row and column of each cell in row-major order, (h * w, 2), in the units of a RopeStyle."""
    axes: list[Tensor] = []
    for cells in size:
        axis = torch.arange(cells, device=device, dtype=torch.float32) + offset
        if centered:
            axis = 2 * (axis + 0.5) / cells - 1
        elif reference is not None:
            axis = axis / cells * reference
        axes.append(axis)
    return torch.stack(torch.meshgrid(axes, indexing="ij"), -1).flatten(0, 1)


def rotate(x: Tensor, table: Tensor, halves: bool) -> Tensor:
    """Rotate pairs of channels of x (N, heads, L, chs) by a table of cosines and sines (2, heads or 1, L, chs)."""
    cosines, sines = table
    if halves:
        first, second = x.chunk(2, -1)
        turned = torch.cat([-second, first], -1)
    else:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return (x * cosines + turned * sines).to(x.dtype)


def drawn_frequencies(depth: int, heads: int, chs: int, temperature: float) -> Tensor:
    """Axial frequencies in a random direction per block and head, (2, depth, heads, chs / 2)."""
    sizes = temperature ** -(torch.arange(0, chs, 4) / chs)
    angles = 2 * math.pi * torch.rand(depth, heads, 1)
    directions = torch.cat([angles.expand(-1, -1, len(sizes)), (angles + math.pi / 2).expand(-1, -1, len(sizes))], -1)
    return torch.stack([directions.cos(), directions.sin()]) * torch.cat([sizes, sizes])
