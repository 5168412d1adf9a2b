"""MobileNetV3, https://arxiv.org/abs/1905.02244.

The last convolution follows the global pool and is part of the head. Minimal variants have 3x3 kernels and ReLU only,
and no squeeze-and-excitation. `tf_` variants pad as TensorFlow does. Reference: timm.
"""

from dataclasses import dataclass, replace

from torch import nn

from ..backbone import classifier
from ..preprocessing import INCEPTION, DataConfig
from ..registry import Variant, register
from .layers.attention import round_chs
from .layers.mobile import (
    ConvNormAct,
    DepthwiseSeparable,
    InvertedResidual,
    MobileConfig,
    MobileStyle,
    MobileTrunk,
    Row,
    Stage,
    as_tensorflow,
    deepen,
    inner_gate,
    widen,
)
from .layers.pool import flatten, global_pool, pooled_chs

HARD = MobileStyle(nn.Hardswish, inner_gate)


@dataclass(frozen=True, slots=True)
class MobileNetV3Config(MobileConfig):
    """The configuration of a MobileNetV3, whose last convolution follows the global pool."""

    style: MobileStyle = HARD


class MobileNetV3(MobileTrunk):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last stage at each reduction."""

    def __init__(self, cfg: MobileNetV3Config) -> None:
        super().__init__(cfg)
        self.global_pool = global_pool(cfg.global_pool)
        self.conv_head = nn.Conv2d(pooled_chs(self.num_features, cfg.global_pool), cfg.head_chs, 1)
        self.act2 = cfg.style.act(inplace=True)
        self.flatten = flatten(cfg.global_pool)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.classifier = classifier(cfg.head_chs, cfg.num_classes, cfg.global_pool)
        self.initialize(self)


CN, DS, IR, RELU = ConvNormAct, DepthwiseSeparable, InvertedResidual, nn.ReLU
SMALL: tuple[Stage, ...] = (
    (Row(DS, 16, 3, 2, se=True, act=RELU),),
    (Row(IR, 24, 3, 2, 4.5, act=RELU), Row(IR, 24, 3, 1, 3.67, act=RELU)),
    (Row(IR, 40, 5, 2, 4, se=True), Row(IR, 40, 5, 1, 6, 2, se=True)),
    (Row(IR, 48, 5, 1, 3, 2, se=True),),
    (Row(IR, 96, 5, 2, 6, 3, se=True),),
    (Row(CN, 576, 1, shortcut=False),),
)
LARGE: tuple[Stage, ...] = (
    (Row(DS, 16, act=RELU),),
    (Row(IR, 24, 3, 2, 4, act=RELU), Row(IR, 24, 3, 1, 3, act=RELU)),
    (Row(IR, 40, 5, 2, 3, 3, se=True, act=RELU),),
    (Row(IR, 80, 3, 2, 6), Row(IR, 80, 3, 1, 2.5), Row(IR, 80, 3, 1, 2.3, 2)),
    (Row(IR, 112, 3, 1, 6, 2, se=True),),
    (Row(IR, 160, 5, 2, 6, 3, se=True),),
    (Row(CN, 960, 1, shortcut=False),),
)


def small(width: float) -> MobileNetV3Config:
    return MobileNetV3Config(widen(SMALL, width), stem_chs(width), 1024)


def large(width: float, depth: float = 1.0) -> MobileNetV3Config:
    return MobileNetV3Config(widen(deepen(LARGE, depth), width), stem_chs(width), 1280)


def stem_chs(width: float) -> int:
    return round_chs(16 * width) if width >= 0.75 else 16


def minimal(cfg: MobileNetV3Config) -> MobileNetV3Config:
    stages = tuple(tuple(replace(row, kernel=min(row.kernel, 3), se=False) for row in stage) for stage in cfg.stages)
    return replace(cfg, stages=stages, style=MobileStyle(RELU))


def tf(cfg: MobileNetV3Config) -> MobileNetV3Config:
    return replace(cfg, style=as_tensorflow(cfg.style))


PLAIN, BILINEAR = DataConfig(), DataConfig(interpolation="bilinear")
HALF = replace(BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    "ra4_e3600_r224_in1k": INCEPTION | {"crop": 0.95},
    **{
        tag: {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
        for tag in ("miil_in21k", "miil_in21k_ft_in1k")
    },
}
VARIANTS = [
    ("mobilenetv3_small_050", small(0.5), "lamb_in1k", PLAIN),
    ("mobilenetv3_small_075", small(0.75), "lamb_in1k", PLAIN),
    ("mobilenetv3_small_100", small(1.0), "lamb_in1k", PLAIN),
    ("mobilenetv3_large_075", large(0.75), "", BILINEAR),
    ("mobilenetv3_large_100", large(1.0), "ra_in1k ra4_e3600_r224_in1k miil_in21k miil_in21k_ft_in1k", PLAIN),
    ("mobilenetv3_large_150d", large(1.5, 1.2), "ra4_e3600_r256_in1k", replace(HALF, size=(256, 256), crop=0.95)),
    ("tf_mobilenetv3_small_075", tf(small(0.75)), "in1k", HALF),
    ("tf_mobilenetv3_small_100", tf(small(1.0)), "in1k", HALF),
    ("tf_mobilenetv3_small_minimal_100", tf(minimal(small(1.0))), "in1k", HALF),
    ("tf_mobilenetv3_large_075", tf(large(0.75)), "in1k", HALF),
    ("tf_mobilenetv3_large_100", tf(large(1.0)), "in1k", HALF),
    ("tf_mobilenetv3_large_minimal_100", tf(minimal(large(1.0))), "in1k", HALF),
]

register(
    {name: Variant(MobileNetV3, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS}
)
