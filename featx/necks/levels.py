"""Necks without fusion: channel projection, resampling, ASPP, and extra coarser levels."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import floor, gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..features import Levels
from .base import Neck, extend_by_halving, init_xavier, levels_from, levels_of, pyramid_of, sequential


def group_norm(chs: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the largest power-of-two divisor of `chs` below that."""
    return nn.GroupNorm(gcd(32, chs), chs)


class ChannelMapper(Neck):
    """A 1x1 convolution and a norm per map: maps of any levels to maps of `chs` channels and the same sizes.

    Detection transformers use it between backbone and encoder (https://arxiv.org/abs/2010.04159).

    Args:
        feature_info: the levels of the input maps.
        chs: channels of the output maps.
        norm: a function from a number of channels to a norm.
    """

    def __init__(self, feature_info: object, chs: int = 256, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__(feature_info)
        self.feature_info = levels_from((chs, level.reduction, f"convs.{i}") for i, level in enumerate(self.takes))
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(level.chs, chs, 1), norm(chs)) for level in self.takes)
        for conv in self.convs.modules():
            if isinstance(conv, nn.Conv2d):
                init_xavier(conv)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        return [conv(map_) for conv, map_ in zip(self.convs, maps, strict=True)]


class Resample(Neck):
    """Bilinear interpolation of maps of any levels to one reduction, with the same channels.

    It adapts a ViT of patch 14 to detectors and decoders whose strides are powers of two: the 16 cells of 224 pixels
    become 14 cells of 16 pixels. Each output cell is interpolated at its position in the image; a remainder of less
    than one cell at the right and at the bottom is cropped.

    Args:
        feature_info: the levels of the input maps.
        reduction: of the output maps, in pixels per cell.

    Raises:
        ArgumentError: `reduction` is not a positive int.
        InputError: when called with a map that is smaller than one output cell.
    """

    def __init__(self, feature_info: object, reduction: int = 16) -> None:
        super().__init__(feature_info)
        if not isinstance(reduction, int) or reduction < 1:
            raise ArgumentError(f"reduction={reduction!r}: expected pixels per cell, a positive int such as 16")
        self.scales = [level.reduction / reduction for level in self.takes]
        self.feature_info = levels_from((level.chs, reduction, f"resized.{i}") for i, level in enumerate(self.takes))
        self.resized = nn.ModuleList(nn.Upsample(scale_factor=scale, mode="bilinear") for scale in self.scales)

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        for map_, scale in zip(maps, self.scales, strict=True):
            if min(map_.shape[2:]) * scale < 1:
                raise InputError(
                    f"a map of {map_.shape[2]}x{map_.shape[3]} cells has no whole cell at a reduction of "
                    f"{self.feature_info[0].reduction} pixels: enlarge the images"
                )
        return [resize(map_) for resize, map_ in zip(self.resized, maps, strict=True)]

    def cells(self, cells: Sequence[int]) -> list[int]:
        return [floor(count * scale) for count, scale in zip(cells, self.scales, strict=True)]


class ASPP(Neck):
    """Atrous spatial pyramid pooling: one map to one map of `chs` channels.

    Layers, parameter names and outputs are those of torchvision's ASPP.

    Args:
        feature_info: the level of the input map.
        chs: channels of the output map.
        rates: dilations in cells. 12, 24 and 36 are meant for a stride of 8 pixels, half of them for 16.

    Raises:
        ContractError: there are several levels.
        InputError: when called in training with a single image: the batch norm of pooled features needs two.
    """

    def __init__(self, feature_info: object, chs: int = 256, *, rates: Sequence[int] = (12, 24, 36)) -> None:
        from torchvision.models.segmentation import deeplabv3

        levels = levels_of(feature_info, "ASPP")
        if len(levels) != 1:
            raise ContractError(f"ASPP takes one map, got\n{levels}\nChoose one, as out_indices=[-1]")
        super().__init__(levels)
        self.feature_info = levels_from([(chs, levels[0].reduction, "project")])
        built = deeplabv3.ASPP(levels[0].chs, rates, chs)
        self.convs, self.project = built.convs, built.project

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        if self.training and len(maps[0]) < 2:
            raise InputError("a single image has no batch statistics: train ASPP on two or more, or put it into eval")
        return [self.project(torch.cat([conv(maps[0]) for conv in self.convs], dim=1))]


class ExtendedNeck(Neck):
    """Base class of necks that return their input maps and add coarser ones.

    Subclasses raise ContractError if the reductions of the input maps do not double.

    Args:
        levels: the levels of the input maps.
        added: channels and module path of each added map.
    """

    def __init__(self, levels: Levels, added: Sequence[tuple[int, str]]) -> None:
        super().__init__(levels)
        self.kept = nn.ModuleList(nn.Identity() for _ in levels)
        rows = [*((level.chs, f"kept.{i}") for i, level in enumerate(levels)), *added]
        self.feature_info = levels_from((chs, levels[0].reduction << i, name) for i, (chs, name) in enumerate(rows))

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        return [*(keep(map_) for keep, map_ in zip(self.kept, maps, strict=True)), *self.coarser(maps[-1])]

    @abstractmethod
    def coarser(self, x: Tensor) -> list[Tensor]:
        """Compute the added maps from the deepest input map."""

    def cells(self, cells: Sequence[int]) -> list[int]:
        return extend_by_halving(cells, len(self.feature_info))


class MaxPoolLevel(ExtendedNeck):
    """Adds a map with every second cell of the deepest map, for the proposals of FPN detectors.

    It equals torchvision's and detectron2's LastLevelMaxPool.
    """

    def __init__(self, feature_info: object) -> None:
        levels = pyramid_of(feature_info, "MaxPoolLevel")
        super().__init__(levels, [(levels[-1].chs, "pool")])
        self.pool = nn.MaxPool2d(1, 2)

    def coarser(self, x: Tensor) -> list[Tensor]:
        return [self.pool(x)]


class P6P7(ExtendedNeck):
    """Adds two maps by convolutions of stride 2, the second after ReLU (RetinaNet, https://arxiv.org/abs/1708.02002).

    Parameter names and outputs are those of torchvision's LastLevelP6P7 on the deepest input map.
    """

    def __init__(self, feature_info: object, chs: int = 256) -> None:
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        super().__init__(pyramid_of(feature_info, "P6P7"), [(chs, "p6"), (chs, "p7")])
        built = LastLevelP6P7(self.takes[-1].chs, chs)
        self.p6, self.p7 = built.p6, built.p7

    def coarser(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class ExtraLevels(ExtendedNeck):
    """Adds maps as SSD does (https://arxiv.org/abs/1512.02325), here with norms.

    Each map is a 1x1 convolution to half of its channels and a 3x3 convolution of stride 2, both with norm and ReLU.

    Args:
        feature_info: the levels of the input maps.
        chs: channels of each added map.
        norm: a function from a number of channels to a norm.

    Raises:
        ArgumentError: `chs` is empty or has a value below 2.
        ContractError: reductions do not double.
    """

    def __init__(
        self, feature_info: object, chs: Sequence[int], *, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        if not chs or any(number < 2 for number in chs):
            raise ArgumentError(f"chs={chs!r}: expected the channels, 2 or more, of each added map")
        levels = pyramid_of(feature_info, "ExtraLevels")
        super().__init__(levels, [(number, f"extra.{i}") for i, number in enumerate(chs)])
        in_chs = [self.takes[-1].chs, *chs][:-1]
        self.extra = nn.ModuleList(_step(*pair, norm) for pair in zip(in_chs, chs, strict=True))

    def coarser(self, x: Tensor) -> list[Tensor]:
        maps = [x]
        for step in self.extra:
            maps.append(step(maps[-1]))
        return maps[1:]


def _step(in_chs: int, chs: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    narrow = chs // 2
    return sequential(
        squeeze=nn.Conv2d(in_chs, narrow, 1, bias=False),
        squeeze_norm=norm(narrow),
        squeeze_act=nn.ReLU(),
        conv=nn.Conv2d(narrow, chs, 3, 2, 1, bias=False),
        norm=norm(chs),
        act=nn.ReLU(),
    )
