"""MobileNetV2, https://arxiv.org/abs/1801.04381. D variants are deeper and keep the stem and head narrow.

EfficientNet is made of the same blocks in the same order, so that its class serves here. Reference: timm.
"""

from ..registry import Variant, register
from .efficientnet import RELU6, EfficientNet, EfficientNetConfig
from .layers.attention import round_chs
from .layers.mobile import DepthwiseSeparable, InvertedResidual, Row, Stage, deepen, widen

STAGES: tuple[Stage, ...] = (
    (Row(DepthwiseSeparable, 16),),
    *(
        (Row(InvertedResidual, chs, 3, stride, 6, repeats),)
        for chs, stride, repeats in [(24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1)]
    ),
)


def plain(width: float) -> EfficientNetConfig:
    """All channels times `width`, but never fewer at the head."""
    head_chs = max(1280, round_chs(1280 * width))
    return EfficientNetConfig(widen(STAGES, width), round_chs(32 * width), head_chs, RELU6)


def deep(width: float, depth: float) -> EfficientNetConfig:
    """Stem and head keep their channels, the first and last stage their depth."""
    stages = (STAGES[0], *deepen(STAGES[1:-1], depth), STAGES[-1])
    return EfficientNetConfig(widen(stages, width), style=RELU6)


register(
    {
        "mobilenetv2_035": Variant(EfficientNet, plain(0.35)),
        "mobilenetv2_050": Variant(EfficientNet, plain(0.5), ("lamb_in1k",)),
        "mobilenetv2_075": Variant(EfficientNet, plain(0.75)),
        "mobilenetv2_100": Variant(EfficientNet, plain(1.0), ("ra_in1k",)),
        "mobilenetv2_110d": Variant(EfficientNet, deep(1.1, 1.2), ("ra_in1k",)),
        "mobilenetv2_120d": Variant(EfficientNet, deep(1.2, 1.4), ("ra_in1k",)),
        "mobilenetv2_140": Variant(EfficientNet, plain(1.4), ("ra_in1k",)),
    }
)
