"""From a map to one number per channel."""

from torch import Tensor, nn

from ...errors import ArgumentError


class AverageMaxPool(nn.Module):
    """The mean of average and maximum: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True))


POOLS = {"avg": lambda: nn.AdaptiveAvgPool2d(1), "max": lambda: nn.AdaptiveMaxPool2d(1), "avgmax": AverageMaxPool}


def global_pool(kind: str) -> nn.Module:
    """(N, C, H, W) to (N, C, 1, 1); ArgumentError if there is no such kind."""
    if kind not in POOLS:
        raise ArgumentError(f"global_pool={kind!r}: choose one of {list(POOLS)}")
    return POOLS[kind]()
