"""MobileNetV3, https://arxiv.org/abs/1905.02244.

The last convolution comes after the global pool, so that it belongs to the head. Reference: timm.
"""

from dataclasses import dataclass

from torch import nn

from ..backbone import Backbone
from ..features import Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.mobile import (
    ConvNormAct,
    DepthwiseSeparable,
    InvertedResidual,
    Row,
    Stage,
    build_stages,
    init_mobile,
    round_chs,
    widen,
)


@dataclass(frozen=True, slots=True)
class MobileNetV3Config:
    """stages: channels before `width` multiplies them. head_chs: of the convolution after the pool, not multiplied."""

    stages: tuple[Stage, ...]
    head_chs: int
    width: float = 1.0
    in_chans: int = 3
    num_classes: int = 1000
    output_stride: int = 32


class MobileNetV3(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last stage at each reduction."""

    last_linear = "classifier"

    def __init__(self, cfg: MobileNetV3Config) -> None:
        super().__init__()
        self.in_chans = cfg.in_chans
        stem_chs = round_chs(16 * cfg.width) if cfg.width >= 0.75 else 16
        self.conv_stem = nn.Conv2d(cfg.in_chans, stem_chs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_chs)
        self.act1 = nn.Hardswish(inplace=True)
        self.blocks, info = build_stages(widen(cfg.stages, cfg.width), stem_chs, cfg.output_stride)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.conv_head = nn.Conv2d(info[-1].chs, cfg.head_chs, 1)
        self.act2 = nn.Hardswish(inplace=True)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(cfg.head_chs, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = Levels(info)
        init_mobile(self)


CN, DS, IR, RELU = ConvNormAct, DepthwiseSeparable, InvertedResidual, nn.ReLU
SMALL: tuple[Stage, ...] = (
    (Row(DS, 16, 3, 2, se=0.25, act=RELU),),
    (Row(IR, 24, 3, 2, expand=4.5, act=RELU), Row(IR, 24, 3, expand=3.67, act=RELU)),
    (Row(IR, 40, 5, 2, expand=4, se=0.25), Row(IR, 40, 5, expand=6, se=0.25, repeats=2)),
    (Row(IR, 48, 5, expand=3, se=0.25, repeats=2),),
    (Row(IR, 96, 5, 2, expand=6, se=0.25, repeats=3),),
    (Row(CN, 576, 1),),
)
LARGE: tuple[Stage, ...] = (
    (Row(DS, 16, 3, act=RELU),),
    (Row(IR, 24, 3, 2, expand=4, act=RELU), Row(IR, 24, 3, expand=3, act=RELU)),
    (Row(IR, 40, 5, 2, expand=3, se=0.25, act=RELU, repeats=3),),
    (Row(IR, 80, 3, 2, expand=6), Row(IR, 80, 3, expand=2.5), Row(IR, 80, 3, expand=2.3, repeats=2)),
    (Row(IR, 112, 3, expand=6, se=0.25, repeats=2),),
    (Row(IR, 160, 5, 2, expand=6, se=0.25, repeats=3),),
    (Row(CN, 960, 1),),
)
LARGE_TAGS = ("ra_in1k", "ra4_e3600_r224_in1k", "miil_in21k", "miil_in21k_ft_in1k")

register(
    {
        "mobilenetv3_small_050": Variant(MobileNetV3, MobileNetV3Config(SMALL, 1024, 0.5), ("lamb_in1k",)),
        "mobilenetv3_small_075": Variant(MobileNetV3, MobileNetV3Config(SMALL, 1024, 0.75), ("lamb_in1k",)),
        "mobilenetv3_small_100": Variant(MobileNetV3, MobileNetV3Config(SMALL, 1024), ("lamb_in1k",)),
        "mobilenetv3_large_075": Variant(
            MobileNetV3, MobileNetV3Config(LARGE, 1280, 0.75), data=DataConfig(interpolation="bilinear")
        ),
        "mobilenetv3_large_100": Variant(MobileNetV3, MobileNetV3Config(LARGE, 1280), LARGE_TAGS),
    }
)
