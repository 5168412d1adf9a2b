"""Coarser maps after the deepest, each of twice the reduction of the one before."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from .base import Neck, described, halved, named, pyramid_of


class Extended(Neck):
    """Returns the maps it takes as they are, and coarser ones, whose channels and module paths are `added`.

    Each raises ContractError if reductions of the given maps do not double.
    """

    def __init__(self, levels: Levels, added: Sequence[tuple[int, str]]) -> None:
        super().__init__(levels)
        self.kept = nn.ModuleList(nn.Identity() for _ in levels)
        rows = [*((level.chs, f"kept.{i}") for i, level in enumerate(levels)), *added]
        self.feature_info = described((chs, levels[0].reduction << i, name) for i, (chs, name) in enumerate(rows))

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        return [*(keep(map_) for keep, map_ in zip(self.kept, maps, strict=True)), *self.coarser(maps[-1])]

    @abstractmethod
    def coarser(self, x: Tensor) -> list[Tensor]:
        """The added maps, from the deepest given one."""

    def cells(self, cells: Sequence[int]) -> list[int]:
        return halved(cells, len(self.feature_info))


class MaxPoolLevel(Extended):
    """Adds every second cell of the deepest map: the level that proposals of FPN detectors have beyond the pyramid.

    The same as torchvision's and detectron2's LastLevelMaxPool.
    """

    def __init__(self, feature_info: object) -> None:
        levels = pyramid_of(feature_info, "MaxPoolLevel")
        super().__init__(levels, [(levels[-1].chs, "pool")])
        self.pool = nn.MaxPool2d(1, 2)

    def coarser(self, x: Tensor) -> list[Tensor]:
        return [self.pool(x)]


class P6P7(Extended):
    """Adds two maps by convolutions of stride 2, the second after ReLU (RetinaNet, https://arxiv.org/abs/1708.02002).

    Names and numbers are those of torchvision's LastLevelP6P7 on the deepest given map.
    """

    def __init__(self, feature_info: object, chs: int = 256) -> None:
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        super().__init__(pyramid_of(feature_info, "P6P7"), [(chs, "p6"), (chs, "p7")])
        built = LastLevelP6P7(self.takes[-1].chs, chs)
        self.p6, self.p7 = built.p6, built.p7

    def coarser(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class ExtraLevels(Extended):
    """Adds maps of `chs` channels: a 1x1 convolution to half of them and a 3x3 of stride 2 each, with norm and ReLU.

    So SSD grows small maps from a backbone (https://arxiv.org/abs/1512.02325), here with a norm.
    """

    def __init__(
        self, feature_info: object, chs: Sequence[int], *, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        if not chs or any(number < 2 for number in chs):
            raise ArgumentError(f"chs={chs!r}: expected the channels, 2 or more, of each added map")
        levels = pyramid_of(feature_info, "ExtraLevels")
        super().__init__(levels, [(number, f"extra.{i}") for i, number in enumerate(chs)])
        given = [self.takes[-1].chs, *chs]
        self.extra = nn.ModuleList(_step(*pair, norm) for pair in zip(given[:-1], chs, strict=True))

    def coarser(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for step in self.extra:
            maps.append(step(maps[-1]))
        return maps[1:]


def _step(in_chs: int, chs: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    narrow = chs // 2
    return named(
        squeeze=nn.Conv2d(in_chs, narrow, 1, bias=False),
        squeeze_norm=norm(narrow),
        squeeze_act=nn.ReLU(),
        conv=nn.Conv2d(narrow, chs, 3, 2, 1, bias=False),
        norm=norm(chs),
        act=nn.ReLU(),
    )
