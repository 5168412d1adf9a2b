"""BiFPN: repeated fusion in both directions with learned weights (EfficientDet, https://arxiv.org/abs/1911.09070)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .base import Neck, extend_by_halving, levels_from, pyramid_of, resize, sequential

EPSILON = 1e-4


class BiFPN(Neck):
    """BiFPN: maps of doubling reductions to maps of `chs` channels and the same sizes, and `extra` coarser maps.

    Each layer fuses maps from deep to shallow and back. A fusion is a sum with learned weights, kept non-negative and
    normalized to sum to 1, followed by SiLU, a separable convolution and batch norm, in the order of the authors' code.
    Each map of the backbone is first projected to `chs` by a 1x1 convolution and batch norm. The first extra map is
    pooled from a projection of the deepest map, each further one from the previous one. Any image size is accepted.

    Args:
        feature_info: the levels of the input maps.
        chs: channels of the output maps.
        repeats: number of layers.
        extra: number of coarser maps to add.

    Raises:
        ArgumentError: there are fewer than two levels, or no repeats.
        ContractError: reductions do not double.
    """

    def __init__(self, feature_info: object, chs: int = 64, repeats: int = 3, *, extra: int = 0) -> None:
        levels = pyramid_of(feature_info, "BiFPN")
        count = len(levels) + extra
        if repeats < 1 or extra < 0 or count < 2:
            raise ArgumentError(
                f"{len(levels)} levels, extra={extra}, repeats={repeats}: expected two or more levels, extra ones "
                "included, and at least one repeat"
            )
        super().__init__(levels)
        last = f"layers.{repeats - 1}.outer"
        self.feature_info = levels_from((chs, levels[0].reduction << i, f"{last}.{i}") for i in range(count))
        sources = [*levels.channels(), levels[-1].chs][: len(levels) + min(extra, 1)]
        self.projections = nn.ModuleList(
            sequential(conv=nn.Conv2d(c, chs, 1, bias=False), bn=_norm(chs)) for c in sources
        )
        self.layers = nn.ModuleList(BiFPNLayer(chs, count) for _ in range(repeats))

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        sources = [*maps, maps[-1]][: len(self.projections)]
        projected = [project(map_) for project, map_ in zip(self.projections, sources, strict=True)]
        for level in range(len(maps), len(self.feature_info)):
            projected[level:] = [_pool(projected[-1])]
        for layer in self.layers:
            projected = layer(projected)
        return projected

    def cells(self, cells: Sequence[int]) -> list[int]:
        return extend_by_halving(cells, len(self.feature_info))


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over `count` maps of `chs` channels. Sizes do not change.

    Attributes:
        inner: fusions of the top-down pass, for all levels except the first and the last.
        outer: fusions that compute each level's output map, shallow to deep.
    """

    def __init__(self, chs: int, count: int) -> None:
        super().__init__()
        between = range(count - 2)
        self.inner = nn.ModuleList(Fusion(chs, 2) for _ in between)
        self.outer = nn.ModuleList([Fusion(chs, 2), *(Fusion(chs, 3) for _ in between), Fusion(chs, 2)])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        inner = list(maps)
        for i in reversed(range(1, len(maps) - 1)):
            inner[i] = self.inner[i - 1]([maps[i], resize(inner[i + 1], maps[i])])
        outer = [self.outer[0]([maps[0], resize(inner[1], maps[0])])]
        for i in range(1, len(maps)):
            inputs = [maps[i]] if i == len(maps) - 1 else [maps[i], inner[i]]
            outer.append(self.outer[i]([*inputs, resize(_pool(outer[-1]), maps[i])]))
        return outer


class Fusion(nn.Module):
    """The weighted mean of maps of one shape, followed by SiLU, a separable convolution and batch norm."""

    def __init__(self, chs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))
        self.conv_dw = nn.Conv2d(chs, chs, 3, padding=1, groups=chs, bias=False)
        self.conv_pw = nn.Conv2d(chs, chs, 1, bias=False)
        self.bn = _norm(chs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        weights = self.weight.relu()
        total = weights.sum() + EPSILON
        mean = weights[0] / total * maps[0]
        for weight, map_ in zip(weights[1:], maps[1:], strict=True):
            mean = mean + weight / total * map_
        return self.bn(self.conv_pw(self.conv_dw(F.silu(mean))))


def _norm(chs: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(chs, eps=1e-3, momentum=0.01)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2, 1)
