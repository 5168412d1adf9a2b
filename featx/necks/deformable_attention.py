"""Deformable attention over several maps (Deformable DETR, https://arxiv.org/abs/2010.04159), in plain PyTorch.

Parameter names are those of the published `MSDeformAttn`, of which ViT-Adapter and Mask2Former have checkpoints.
"""

from collections.abc import Sequence
from math import pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError

Size = tuple[int, int]  # height and width in cells


class DeformableAttention(nn.Module):
    """Each query is a weighted sum of values at a few points near it, in each of several maps.

    Args:
        dim: channels of queries, values and outputs.
        levels: number of maps that values come from.
        heads: attention heads; `dim` is a multiple.
        points: points per head and map.
        ratio: channels inside, relative to `dim`.

    Raises:
        ArgumentError: channels are not a multiple of `heads`.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int = 4, ratio: float = 1.0) -> None:
        super().__init__()
        inner = int(dim * ratio)
        if dim % heads or inner % heads:
            raise ArgumentError(f"heads={heads}: {dim} channels, and {inner} inside, are not a multiple of it")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, inner)
        self.output_proj = nn.Linear(inner, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize in place as the paper: heads look in different directions, and points are further away each."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads, device=self.sampling_offsets.bias.device) * (2 * pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, device=directions.device)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, queries: Tensor, centers: Tensor, cells: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Queries (N, L, dim) to outputs (N, L, dim).

        Args:
            queries: (N, L, dim).
            centers: (L, levels, 2), the x and y of each query in each map, from 0 to 1.
            cells: (N, cells, dim), the cells of all maps, one map after another.
            sizes: height and width of each map.
        """
        values = self.value_proj(cells).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = self.attention_weights(queries).unflatten(-1, (self.heads, -1)).softmax(-1)
        sampled: list[Tensor] = []
        maps = values.split([height * width for height, width in sizes], -1)
        for level, (map_, (height, width)) in enumerate(zip(maps, sizes, strict=True)):
            x, y = offsets[:, :, :, level].unbind(-1)  # in cells; (N, L, heads, points)
            shifts = torch.stack([x / width, y / height], -1)
            points = (centers[:, None, None, level] + shifts).transpose(1, 2).flatten(0, 1)
            grid = (2 * points - 1).to(map_.dtype)  # (N * heads, L, points, 2), from -1 to 1
            sampled.append(F.grid_sample(map_.reshape(*map_.shape[:2], height, width), grid, align_corners=False))
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (N * heads, 1, L, levels * points)
        summed = (torch.cat(sampled, -1) * weights).sum(-1)  # (N * heads, inner / heads, L)
        return self.output_proj(summed.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2))
