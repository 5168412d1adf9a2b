"""ChannelMapper: the same number of channels at every level."""

from collections.abc import Callable
from math import gcd

from torch import Tensor, nn

from .base import Neck, described, start_uniform


def group_norm(chs: int) -> nn.GroupNorm:
    """Of 32 groups, or fewer where they would not divide `chs`."""
    return nn.GroupNorm(gcd(32, chs), chs)


class ChannelMapper(Neck):
    """Maps of any levels to maps of `chs` channels and the same sizes: a 1x1 convolution and a norm each.

    It is what detection transformers put between backbone and encoder (https://arxiv.org/abs/2010.04159).
    """

    def __init__(self, feature_info: object, chs: int = 256, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__(feature_info)
        self.feature_info = described((chs, level.reduction, f"convs.{i}") for i, level in enumerate(self.takes))
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(level.chs, chs, 1), norm(chs)) for level in self.takes)
        for conv in self.convs.modules():
            if isinstance(conv, nn.Conv2d):
                start_uniform(conv)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        return [conv(map_) for conv, map_ in zip(self.convs, maps, strict=True)]
