"""From a map to one number per channel, or to none where a head reads every cell."""

import torch
from torch import Tensor, nn

from ...errors import ArgumentError


class AverageMaxPool(nn.Module):
    """The mean of average and maximum: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True))


class CatAverageMaxPool(nn.Module):
    """The averages, then the maxima: (N, C, H, W) to (N, 2 * C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)), 1)


POOLS = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "avgmax": AverageMaxPool,
    "catavgmax": CatAverageMaxPool,
    "": nn.Identity,
}
DOUBLING = ("catavgmax",)


def global_pool(kind: str) -> nn.Module:
    """(N, C, H, W) to (N, pooled_chs, 1, 1), or the map itself for ""; ArgumentError if there is no such kind."""
    if not isinstance(kind, str) or kind not in POOLS:
        raise ArgumentError(f"global_pool={kind!r}: choose one of {list(POOLS)}")
    return POOLS[kind]()


def pooled_chs(chs: int, kind: str) -> int:
    """Channels behind the pool of a map with `chs` channels."""
    return 2 * chs if kind in DOUBLING else chs


def flatten(kind: str) -> nn.Module:
    """(N, C, 1, 1) to (N, C) behind a pool; maps stay maps where there is none."""
    return nn.Flatten() if kind else nn.Identity()
