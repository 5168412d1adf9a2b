"""ASPP: torchvision's atrous spatial pyramid pooling on one map (DeepLabV3, https://arxiv.org/abs/1706.05587)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ContractError, InputError
from .base import Neck, described, levels_of


class ASPP(Neck):
    """One map to one of `chs` channels that has seen it at several dilations, and as a whole.

    It is made of the layers of torchvision's ASPP, under the same names, and gives the same numbers.

    rates: dilations in cells; 12, 24 and 36 are for a stride of 8 pixels, half of them for 16.

    Raises ContractError for several maps, and InputError for a single image in training, where the batch norm of pooled
    features needs two.
    """

    def __init__(self, feature_info: object, chs: int = 256, *, rates: Sequence[int] = (12, 24, 36)) -> None:
        from torchvision.models.segmentation import deeplabv3

        levels = levels_of(feature_info, "ASPP")
        if len(levels) != 1:
            raise ContractError(f"ASPP takes one map, got\n{levels}\nChoose one, as out_indices=[-1]")
        super().__init__(levels)
        self.feature_info = described([(chs, levels[0].reduction, "project")])
        built = deeplabv3.ASPP(levels[0].chs, rates, chs)
        self.convs, self.project = built.convs, built.project

    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        if self.training and len(maps[0]) < 2:
            raise InputError("a single image has no batch statistics: train ASPP on two or more, or put it into eval")
        return [self.project(torch.cat([conv(maps[0]) for conv in self.convs], dim=1))]
