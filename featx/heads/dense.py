"""Segmentation heads, which classify every cell of the last map.

DeepLabV3 (https://arxiv.org/abs/1706.05587): parallel convolutions with several dilations, and global pooling. The
pyramid is torchvision's; as in CVNets and transformers, the classifier follows it directly, where torchvision has
another convolution. PSPNet (https://arxiv.org/abs/1612.01105): the map concatenated with its averages over coarse
grids, and an auxiliary head on the second-to-last map for the training loss; the reference is CVNets. Linear probe: a
1x1 convolution.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, InputError
from ..features import Levels
from ..models.layers.conv_norm import ConvNorm

NARROWEST = 128
MULTIPLE = 16  # the channels of a branch are a multiple of it


class DenseHead(nn.Module, ABC):
    """Base class of heads: maps to logits (N, num_classes, h, w) at the size of one of the maps.

    Args:
        feature_info: the levels of the maps.
        num_classes: number of classes, at least 1.
        position: of the map that is classified.

    Raises:
        ArgumentError: `num_classes` is below 1, or there is no level at `position`.
        InputError: when called with maps that do not match the levels.
    """

    def __init__(self, feature_info: Levels, num_classes: int, position: int = -1) -> None:
        super().__init__()
        require_classes(num_classes, fewest=1)
        if not -len(feature_info) <= position < len(feature_info):
            raise ArgumentError(
                f"{type(self).__name__} takes map {position} of its source, which gives {len(feature_info)}; ask for "
                f"more levels with out_indices:\n{feature_info}"
            )
        self.feature_info, self.num_classes = feature_info, num_classes
        self.position, self.in_chs = position, feature_info[position].chs

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        require_maps(maps, self.feature_info, type(self).__name__)
        return self.classify(maps[self.position])

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """(N, in_chs, h, w) to logits (N, num_classes, h, w)."""


class SegmentationConfig(Protocol):
    """The configuration of a segmentation head."""

    def build(self, feature_info: Levels, num_classes: int) -> DenseHead:
        """The head, with random weights."""
        ...


def dropout(rate: float) -> nn.Module:
    """Dropout of whole channels in training. ArgumentError unless the rate is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ArgumentError(f"dropout={rate!r}: expected a rate from 0 to below 1")
    return nn.Dropout2d(rate)


def require_classes(num_classes: int, fewest: int) -> None:
    """ArgumentError unless `num_classes` is an int of at least `fewest`."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < fewest:
        raise ArgumentError(f"num_classes={num_classes!r}: expected an int of at least {fewest}")


def require_maps(maps: Sequence[Tensor], levels: Levels, owner: str) -> None:
    """InputError unless there is one map per level with the channels of the level."""
    expected, shapes = levels.channels(), [tuple(map_.shape) for map_ in maps]
    if len(shapes) != len(expected) or any(
        len(shape) != 4 or shape[1] != chs for shape, chs in zip(shapes, expected, strict=False)
    ):
        raise InputError(f"{owner} expects maps (N, chs, h, w) with chs {expected}, got shapes {shapes}")


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """The configuration of a linear probe, which has no options."""

    def build(self, feature_info: Levels, num_classes: int) -> "LinearProbe":
        """The head, with random weights."""
        return LinearProbe(feature_info, num_classes)


class LinearProbe(DenseHead):
    """A 1x1 convolution on the last map: logits (N, num_classes, h, w). Raises the errors of DenseHead."""

    def __init__(self, feature_info: Levels, num_classes: int) -> None:
        super().__init__(feature_info, num_classes)
        self.classifier = nn.Conv2d(self.in_chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)


class AuxiliaryHead(DenseHead):
    """Auxiliary head: maps to logits (N, num_classes, h, w) at the size of the second-to-last map.

    Its convolution has a quarter of the map's channels, at least 128, as in CVNets. Raises the errors of DenseHead.
    """

    def __init__(self, feature_info: Levels, num_classes: int, drop_rate: float = 0.1) -> None:
        super().__init__(feature_info, num_classes, position=-2)
        chs = max(self.in_chs // 4, NARROWEST)
        self.local = ConvNorm(self.in_chs, chs, 3, act=nn.ReLU)
        self.drop = dropout(drop_rate)
        self.classifier = nn.Conv2d(chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.local(x)))


@dataclass(frozen=True, slots=True)
class DeepLabV3Config:
    """The configuration of DeepLabV3.

    The rates are not part of a checkpoint. CVNets trained its published models with (6, 12, 18) at output stride 16 and
    with (12, 24, 36) at 8. Its MobileViTv2 models, and transformers' MobileViTV2, have 512 channels.

    Attributes:
        chs: channels of every branch.
        atrous_rates: dilations of the 3x3 convolutions.
        dropout: rate of dropout before the classifier.
    """

    chs: int = 256
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1

    def build(self, feature_info: Levels, num_classes: int) -> "DeepLabV3":
        """The head, with random weights."""
        return DeepLabV3(feature_info, num_classes, self)


class DeepLabV3(DenseHead):
    """DeepLabV3 head: maps to logits (N, num_classes, h, w) at the size of the last map.

    In training, the pooling branch needs more than one image per batch. Raises the errors of DenseHead, and
    ArgumentError for an invalid configuration.
    """

    def __init__(self, feature_info: Levels, num_classes: int, cfg: DeepLabV3Config = DeepLabV3Config()) -> None:
        from torchvision.models.segmentation.deeplabv3 import ASPP

        super().__init__(feature_info, num_classes)
        if cfg.chs < 1 or not cfg.atrous_rates or min(cfg.atrous_rates) < 1:
            raise ArgumentError(f"{cfg}: expected positive channels, and one or more positive rates")
        self.aspp = ASPP(self.in_chs, cfg.atrous_rates, cfg.chs)
        self.aspp.project[-1] = dropout(cfg.dropout)
        self.classifier = nn.Conv2d(cfg.chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.aspp(x))


@dataclass(frozen=True, slots=True)
class PSPNetConfig:
    """The configuration of PSPNet.

    Attributes:
        chs: channels of the fused map.
        pool_sizes: cells along a side of each branch's grid.
        dropout: rate of dropout before the classifier.
    """

    chs: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1

    def build(self, feature_info: Levels, num_classes: int) -> "PSPNet":
        """The head, with random weights."""
        return PSPNet(feature_info, num_classes, self)


class PSPNet(DenseHead):
    """PSPNet head: maps to logits (N, num_classes, h, w) at the size of the last map.

    The branches together have as many channels as the map. In training, a grid of a single cell needs more than one
    image per batch. Raises the errors of DenseHead, and ArgumentError for a configuration that does not fit the map.
    """

    def __init__(self, feature_info: Levels, num_classes: int, cfg: PSPNetConfig = PSPNetConfig()) -> None:
        super().__init__(feature_info, num_classes)
        if cfg.chs < 1 or not cfg.pool_sizes or min(cfg.pool_sizes) < 1:
            raise ArgumentError(f"{cfg}: expected positive channels, and one or more positive pool_sizes")
        branches = len(cfg.pool_sizes)
        chs = self.in_chs // branches // MULTIPLE * MULTIPLE
        if not chs:
            raise ArgumentError(
                f"a map of {self.in_chs} channels is too narrow for {branches} branches: it needs {MULTIPLE * branches}"
            )
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNorm(self.in_chs, chs, act=nn.ReLU))
            for side in cfg.pool_sizes
        )
        self.fusion = ConvNorm(self.in_chs + branches * chs, cfg.chs, 3, act=nn.ReLU)
        self.drop = dropout(cfg.dropout)
        self.classifier = nn.Conv2d(cfg.chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [F.interpolate(branch(x), size, mode="bilinear", align_corners=True) for branch in self.branches]
        return self.classifier(self.drop(self.fusion(torch.cat((x, *pooled), dim=1))))
