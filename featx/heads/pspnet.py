"""PSPNet, https://arxiv.org/abs/1612.01105: the map beside its averages over coarse grids. Reference: CVNets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from ..models.layers.conv_norm import ConvNorm
from .dense import DenseHead, dropout

MULTIPLE = 16  # of which the channels of a branch are one


@dataclass(frozen=True, slots=True)
class PSPNetConfig:
    """chs: channels of the fused map. pool_sizes: cells along a side of each branch's grid."""

    chs: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1

    def build(self, feature_info: Levels, num_classes: int) -> "PSPNet":
        """The head, with random weights."""
        return PSPNet(feature_info, num_classes, self)


class PSPNet(DenseHead):
    """Maps to logits (N, num_classes, h, w) at the size of the last map.

    The branches share the channels of the map among them. In training, a grid of a single cell needs more than one
    image. Raises what DenseHead does, and ArgumentError for a configuration that cannot be built on this map.
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
