"""MobileNetV2, https://arxiv.org/abs/1801.04381. D variants are deeper and keep the stem and head narrow.

Reference: timm.
"""

from dataclasses import dataclass

from torch import nn

from ..backbone import Backbone
from ..features import Levels
from ..registry import Variant, register
from .layers.mobile import (
    DepthwiseSeparable,
    InvertedResidual,
    Row,
    Stage,
    build_stages,
    deepen,
    init_mobile,
    round_chs,
    widen,
)

STAGES: tuple[Stage, ...] = (
    (Row(DepthwiseSeparable, 16, act=nn.ReLU6),),
    *(
        (Row(InvertedResidual, chs, stride=stride, expand=6, act=nn.ReLU6, repeats=repeats),)
        for chs, stride, repeats in [(24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1)]
    ),
)


@dataclass(frozen=True, slots=True)
class MobileNetV2Config:
    """width, depth: multiply channels and repeats; a depth above 1 leaves the first and last stage as they are."""

    width: float = 1.0
    depth: float = 1.0
    in_chans: int = 3
    num_classes: int = 1000
    output_stride: int = 32


class MobileNetV2(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last stage at each reduction."""

    last_linear = "classifier"

    def __init__(self, cfg: MobileNetV2Config) -> None:
        super().__init__()
        self.in_chans = cfg.in_chans
        narrow = cfg.depth > 1
        stem_chs = 32 if narrow else round_chs(32 * cfg.width)
        head_chs = 1280 if narrow else max(1280, round_chs(1280 * cfg.width))
        stages = widen((STAGES[0], *deepen(STAGES[1:-1], cfg.depth), STAGES[-1]), cfg.width)
        self.conv_stem = nn.Conv2d(cfg.in_chans, stem_chs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_chs)
        self.act1 = nn.ReLU6(inplace=True)
        self.blocks, info = build_stages(stages, stem_chs, cfg.output_stride)
        self.conv_head = nn.Conv2d(info[-1].chs, head_chs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head_chs)
        self.act2 = nn.ReLU6(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(head_chs, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = Levels(info)
        init_mobile(self)


register(
    {
        "mobilenetv2_035": Variant(MobileNetV2, MobileNetV2Config(0.35)),
        "mobilenetv2_050": Variant(MobileNetV2, MobileNetV2Config(0.5), ("lamb_in1k",)),
        "mobilenetv2_075": Variant(MobileNetV2, MobileNetV2Config(0.75)),
        "mobilenetv2_100": Variant(MobileNetV2, MobileNetV2Config(1.0), ("ra_in1k",)),
        "mobilenetv2_110d": Variant(MobileNetV2, MobileNetV2Config(1.1, 1.2), ("ra_in1k",)),
        "mobilenetv2_120d": Variant(MobileNetV2, MobileNetV2Config(1.2, 1.4), ("ra_in1k",)),
        "mobilenetv2_140": Variant(MobileNetV2, MobileNetV2Config(1.4), ("ra_in1k",)),
    }
)
