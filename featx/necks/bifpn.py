"""BiFPN: repeated fusion in both directions with learned weights (EfficientDet, https://arxiv.org/abs/1911.09070)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from .base import Neck, described, halved, named, pyramid_of, resize

EPSILON = 1e-4


class BiFPN(Neck):
    """Maps of doubling reductions to maps of `chs` channels and the same sizes, and `extra` coarser ones.

    `repeats` layers go from deep to shallow and back; every sum is weighted by learned weights that are kept positive
    and divided by their sum, and followed by SiLU, a separable convolution and batch norm, in the order of the authors'
    code. Each map of the backbone is projected to `chs` once, by a 1x1 convolution and batch norm. The first extra map
    is pooled from a projection of the deepest, each further one from the one before. Any sizes fit.

    Raises ContractError if reductions do not double, ArgumentError for less than two levels or no repeats.
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
        self.feature_info = described((chs, levels[0].reduction << i, f"{last}.{i}") for i in range(count))
        sources = [*levels.channels(), levels[-1].chs][: len(levels) + min(extra, 1)]
        self.projections = nn.ModuleList(named(conv=nn.Conv2d(c, chs, 1, bias=False), bn=_norm(chs)) for c in sources)
        self.layers = nn.ModuleList(BiFPNLayer(chs, count) for _ in range(repeats))

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        given = [*maps, maps[-1]][: len(self.projections)]
        projected = [project(map_) for project, map_ in zip(self.projections, given, strict=True)]
        for level in range(len(maps), len(self.feature_info)):
            projected[level:] = [_pool(projected[-1])]
        for layer in self.layers:
            projected = layer(projected)
        return projected

    def cells(self, cells: Sequence[int]) -> list[int]:
        return halved(cells, len(self.feature_info))


class BiFPNLayer(nn.Module):
    """One pass down and up over `count` maps of `chs` channels, which keep their sizes.

    inner: the fusions on the way from deep to shallow, of all levels between the first and the last.
    outer: the fusions that give each level's map, shallow to deep.
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
            own = [maps[i]] if i == len(maps) - 1 else [maps[i], inner[i]]
            outer.append(self.outer[i]([*own, resize(_pool(outer[-1]), maps[i])]))
        return outer


class Fusion(nn.Module):
    """Maps of one shape to their weighted mean, and that through SiLU, a separable convolution and batch norm."""

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
