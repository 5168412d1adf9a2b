"""DeepLabV3, https://arxiv.org/abs/1706.05587: convolutions of several dilations side by side, and the whole image.

As in CVNets and transformers, the classifier follows the pyramid at once, where torchvision has one more convolution.
The pyramid is torchvision's.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import ArgumentError
from ..features import Levels
from .dense import DenseHead, dropout


@dataclass(frozen=True, slots=True)
class DeepLabV3Config:
    """chs: channels of every branch. atrous_rates: dilations of the 3x3 convolutions.

    The rates cannot be seen in a checkpoint. CVNets trained its published models with (6, 12, 18) at output stride 16
    and with (12, 24, 36) at 8; its MobileViTv2 have 512 channels, and so have transformers' MobileViTV2.
    """

    chs: int = 256
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1

    def build(self, feature_info: Levels, num_classes: int) -> "DeepLabV3":
        """The head, with random weights."""
        return DeepLabV3(feature_info, num_classes, self)


class DeepLabV3(DenseHead):
    """Maps to logits (N, num_classes, h, w) at the size of the last map.

    In training, the branch that pools needs more than one image. Raises what DenseHead does, and ArgumentError for a
    configuration that cannot be built.
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
