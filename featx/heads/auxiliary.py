"""A second head on the map before the last, for the loss of training (https://arxiv.org/abs/1612.01105)."""

from torch import Tensor, nn

from ..features import Levels
from ..models.layers.conv_norm import ConvNorm
from .dense import DenseHead, dropout

NARROWEST = 128


class AuxiliaryHead(DenseHead):
    """Maps to logits (N, num_classes, h, w) at the size of the last map but one. Raises what DenseHead does.

    It has a quarter of the map's channels, at least 128, as in CVNets.
    """

    def __init__(self, feature_info: Levels, num_classes: int, drop_rate: float = 0.1) -> None:
        super().__init__(feature_info, num_classes, position=-2)
        chs = max(self.in_chs // 4, NARROWEST)
        self.local = ConvNorm(self.in_chs, chs, 3, act=nn.ReLU)
        self.drop = dropout(drop_rate)
        self.classifier = nn.Conv2d(chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.local(x)))
