"""MobileNetV3, https://arxiv.org/abs/1905.02244.

The last convolution comes after the global pool, so that it belongs to the head. Minimal variants have 3x3 kernels and
ReLU only, and no squeeze-and-excitation; `tf_` variants pad as TensorFlow does. Reference: timm.
"""

from dataclasses import dataclass, replace

from torch import nn

from ..backbone import Backbone, StridedConfig, classifier
from ..features import Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.mobile import (
    ConvNormAct,
    DepthwiseSeparable,
    InvertedResidual,
    MobileStyle,
    Row,
    Stage,
    as_tensorflow,
    build_stages,
    deepen,
    init_mobile,
    inner_gate,
    widen,
    with_norm_eps,
)
from .layers.pool import global_pool
from .layers.rounding import round_chs

HARD = MobileStyle(nn.Hardswish, inner_gate)


@dataclass(frozen=True, slots=True)
class MobileNetV3Config(StridedConfig):
    """head_chs: channels of the convolution after the pool.

    norm_eps: of the batch norms; None leaves them as the style has them.
    """

    stages: tuple[Stage, ...]
    head_chs: int
    stem_chs: int = 16
    style: MobileStyle = HARD
    norm_eps: float | None = None


class MobileNetV3(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last stage at each reduction."""

    last_linear = "classifier"
    initialise = staticmethod(init_mobile)

    def __init__(self, cfg: MobileNetV3Config) -> None:
        super().__init__()
        self.in_chans, style = cfg.in_chans, with_norm_eps(cfg.style, cfg.norm_eps)
        self.conv_stem = style.conv(cfg.in_chans, cfg.stem_chs, 3, 2, 1, 1)
        self.bn1 = style.norm(cfg.stem_chs)
        self.act1 = style.act(inplace=True)
        self.blocks, info = build_stages(
            cfg.stages, cfg.stem_chs, style, output_stride=cfg.output_stride, drop_path_rate=cfg.drop_path_rate
        )
        self.global_pool = global_pool(cfg.global_pool)
        self.conv_head = nn.Conv2d(info[-1].chs, cfg.head_chs, 1)
        self.act2 = style.act(inplace=True)
        self.flatten = nn.Flatten()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.classifier = classifier(cfg.head_chs, cfg.num_classes)
        self.feature_info, self.num_features, self.head_hidden_size = Levels(info), info[-1].chs, cfg.head_chs
        self.initialise(self)


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
    return MobileNetV3Config(widen(SMALL, width), 1024, stem_chs(width))


def large(width: float, depth: float = 1.0) -> MobileNetV3Config:
    return MobileNetV3Config(widen(deepen(LARGE, depth), width), 1280, stem_chs(width))


def stem_chs(width: float) -> int:
    return round_chs(16 * width) if width >= 0.75 else 16


def minimal(cfg: MobileNetV3Config) -> MobileNetV3Config:
    stages = tuple(tuple(replace(row, kernel=min(row.kernel, 3), se=False) for row in stage) for stage in cfg.stages)
    return replace(cfg, stages=stages, style=MobileStyle(RELU))


def tf(cfg: MobileNetV3Config) -> MobileNetV3Config:
    return replace(cfg, style=as_tensorflow(cfg.style))


PLAIN, BILINEAR = DataConfig(), DataConfig(interpolation="bilinear")
HALF = replace(BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
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

register({name: Variant(MobileNetV3, config, tuple(tags.split()), images) for name, config, tags, images in VARIANTS})
