"""EfficientNet, https://arxiv.org/abs/1905.11946, its Lite variants, EfficientNetV2, and MobileNetV2.

https://arxiv.org/abs/2104.00298, https://arxiv.org/abs/1801.04381. B1 to B8 are wider and deeper versions of B0. Lite
variants have no squeeze-and-excitation. The first stages of EfficientNetV2 fuse the expansion with the depthwise
convolution. `tf_` variants pad as TensorFlow does. MobileNetV2 has the same blocks in the same order and shares the
class; its D variants are deeper and do not widen stem and head. `forward_features` includes one convolution after the
deepest level. Reference: timm.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from ..backbone import classifier
from ..preprocessing import IMAGENET, INCEPTION, DataConfig
from ..registry import Variant, register
from .layers.attention import round_chs
from .layers.mobile import (
    ConvNormAct,
    DepthwiseSeparable,
    FusedInvertedResidual,
    InvertedResidual,
    MobileConfig,
    MobileStyle,
    MobileTrunk,
    Row,
    Stage,
    as_tensorflow,
    deepen,
    widen,
)
from .layers.pool import flatten, global_pool, pooled_chs

SILU, RELU6 = MobileStyle(nn.SiLU), MobileStyle(nn.ReLU6)


@dataclass(frozen=True, slots=True)
class EfficientNetConfig(MobileConfig):
    """The configuration of an EfficientNet. Defaults are those of EfficientNet-B0."""

    stem_chs: int = 32
    head_chs: int = 1280
    style: MobileStyle = SILU


class EfficientNet(MobileTrunk):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last stage at each reduction."""

    def __init__(self, cfg: EfficientNetConfig) -> None:
        super().__init__(cfg)
        style = cfg.layers
        self.conv_head = style.conv(self.num_features, cfg.head_chs, 1, 1, 1, 1)
        self.num_features, self.last_feature = cfg.head_chs, "act2"
        self.bn2 = style.norm(cfg.head_chs)
        self.act2 = style.act(inplace=True)
        self.global_pool = global_pool(cfg.global_pool)
        self.flatten = flatten(cfg.global_pool)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head_hidden_size = pooled_chs(cfg.head_chs, cfg.global_pool)
        self.classifier = classifier(self.head_hidden_size, cfg.num_classes, cfg.global_pool)
        self.initialize(self)


DS, IR = DepthwiseSeparable, InvertedResidual
B0: tuple[Stage, ...] = (
    (Row(DS, 16, se=True),),
    (Row(IR, 24, 3, 2, 6, 2, se=True),),
    (Row(IR, 40, 5, 2, 6, 2, se=True),),
    (Row(IR, 80, 3, 2, 6, 3, se=True),),
    (Row(IR, 112, 5, 1, 6, 3, se=True),),
    (Row(IR, 192, 5, 2, 6, 4, se=True),),
    (Row(IR, 320, 3, 1, 6, 1, se=True),),
)
LITE0 = tuple(tuple(replace(row, se=False) for row in stage) for stage in B0)


def v2(
    first: Row, fused: Sequence[tuple[int, int]], separable: Sequence[tuple[int, int, int, int]]
) -> tuple[Stage, ...]:
    """The stages of EfficientNetV2: the first, fused ones of (channels, repeats), and inverted residuals with
    squeeze-and-excitation of (channels, stride, expansion, repeats).
    """
    return (
        (first,),
        *((Row(FusedInvertedResidual, chs, 3, 2, 4, repeats),) for chs, repeats in fused),
        *((Row(IR, chs, 3, stride, expand, repeats, se=True),) for chs, stride, expand, repeats in separable),
    )


def dense(chs: int, repeats: int) -> Row:
    return Row(ConvNormAct, chs, repeats=repeats)


V2_B0 = v2(dense(16, 1), [(32, 2), (48, 2)], [(96, 2, 4, 3), (112, 1, 6, 5), (192, 2, 6, 8)])
V2_S = v2(dense(24, 2), [(48, 4), (64, 4)], [(128, 2, 4, 6), (160, 1, 6, 9), (256, 2, 6, 15)])
V2_M = v2(dense(24, 3), [(48, 5), (80, 5)], [(160, 2, 4, 7), (176, 1, 6, 14), (304, 2, 6, 18), (512, 1, 6, 5)])
V2_L = v2(dense(32, 4), [(64, 7), (96, 7)], [(192, 2, 4, 10), (224, 1, 6, 19), (384, 2, 6, 25), (640, 1, 6, 7)])
V2_XL = v2(dense(32, 4), [(64, 8), (96, 8)], [(192, 2, 4, 16), (256, 1, 6, 24), (512, 2, 6, 32), (640, 1, 6, 8)])
# drawn from the paper before its code was published
V2_RW = v2(
    Row(FusedInvertedResidual, 24, repeats=2),
    [(48, 4), (64, 4)],
    [(128, 2, 4, 6), (160, 1, 6, 9), (272, 2, 6, 15)],
)
TINY = v2(dense(16, 1), [(24, 1), (32, 1)], [(48, 2, 4, 1), (64, 2, 4, 1)])


def scaled(
    stages: tuple[Stage, ...], width: float, *, stem: int = 32, head: int = 1280, lowest: float = 0.9
) -> EfficientNetConfig:
    """Multiply all channels by `width`. Rounding keeps at least the fraction `lowest`."""
    stem, head = (round_chs(chs * width, lowest=lowest) for chs in (stem, head))
    return EfficientNetConfig(widen(stages, width, lowest), stem, head)


def b(width: float, depth: float) -> EfficientNetConfig:
    return scaled(deepen(B0, depth), width)


def lite(width: float, depth: float) -> EfficientNetConfig:
    """Stem and head keep their channels, the first and last stage their depth."""
    stages = (LITE0[0], *deepen(LITE0[1:-1], depth), LITE0[-1])
    return EfficientNetConfig(widen(stages, width), style=RELU6)


def v2_b(width: float, depth: float) -> EfficientNetConfig:
    return scaled(deepen(V2_B0, depth), width, lowest=0.0)


def tf(cfg: EfficientNetConfig) -> EfficientNetConfig:
    return replace(cfg, style=as_tensorflow(cfg.style))


def data(size: int = 224, crop: float = 0.875) -> DataConfig:
    return DataConfig((size, size), crop=crop)


def half(size: int, crop: float, interpolation: str = "bicubic") -> DataConfig:
    """Preprocessing that scales pixels to [-1, 1]."""
    return DataConfig((size, size), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation, crop)


def squashed(config: DataConfig) -> DataConfig:
    return replace(config, crop_mode="squash")


RW_S = scaled(V2_RW, 1.0, stem=24, head=1792)
RW_M = scaled((*deepen(V2_RW[:4], 1.2), *deepen(V2_RW[4:], 1.6)), 1.2, stem=24, head=1792)
S, M = (EfficientNetConfig(stages, stem_chs=24) for stages in (V2_S, V2_M))
L, XL = EfficientNetConfig(V2_L), EfficientNetConfig(V2_XL)
NS, TF21 = "ns_jft_in1k aa_in1k ap_in1k", "in21k_ft_in1k in1k in21k"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    "ap_in1k": INCEPTION,
    "ra_in1k": IMAGENET,
    "ra4_e3600_r224_in1k": INCEPTION | {"crop": 0.9},
    "ft_in1k": IMAGENET | {"size": (224, 224), "crop": 0.875},
    "sw_in12k": {"size": (416, 416), "crop": 0.95, "crop_mode": "center"},
    "tf_efficientnetv2_b3.in1k": IMAGENET | {"crop": 0.904, "crop_mode": "center"},
    "tf_efficientnetv2_b3.in21k": {"crop": 0.904, "crop_mode": "center"},
}
VARIANTS = [
    ("efficientnet_b0", b(1.0, 1.0), "ra_in1k ra4_e3600_r224_in1k", data()),
    ("efficientnet_b1", b(1.0, 1.1), "ra4_e3600_r240_in1k ft_in1k", half(240, 0.9)),
    ("efficientnet_b2", b(1.1, 1.2), "ra_in1k", data(256)),
    ("efficientnet_b3", b(1.2, 1.4), "ra2_in1k", data(288)),
    ("efficientnet_b4", b(1.4, 1.8), "ra2_in1k", data(320)),
    ("efficientnet_b5", b(1.6, 2.2), "sw_in12k_ft_in1k sw_in12k", squashed(data(448, 1.0))),
    ("efficientnet_b6", b(1.8, 2.6), "", data(528, 0.942)),
    ("efficientnet_b7", b(2.0, 3.1), "", data(600, 0.949)),
    ("tf_efficientnet_b0", tf(b(1.0, 1.0)), f"{NS} in1k", data()),
    ("tf_efficientnet_b1", tf(b(1.0, 1.1)), f"{NS} in1k", data(240, 0.882)),
    ("tf_efficientnet_b2", tf(b(1.1, 1.2)), f"{NS} in1k", data(260, 0.89)),
    ("tf_efficientnet_b3", tf(b(1.2, 1.4)), f"{NS} in1k", data(300, 0.904)),
    ("tf_efficientnet_b4", tf(b(1.4, 1.8)), f"{NS} in1k", data(380, 0.922)),
    ("tf_efficientnet_b5", tf(b(1.6, 2.2)), f"{NS} in1k ra_in1k", data(456, 0.934)),
    ("tf_efficientnet_b6", tf(b(1.8, 2.6)), NS, data(528, 0.942)),
    ("tf_efficientnet_b7", tf(b(2.0, 3.1)), f"{NS} ra_in1k", data(600, 0.949)),
    ("tf_efficientnet_b8", tf(b(2.2, 3.6)), "ap_in1k ra_in1k", half(672, 0.954)),
    ("efficientnet_lite0", lite(1.0, 1.0), "ra_in1k", data()),
    ("efficientnet_lite1", lite(1.0, 1.1), "", data(240, 0.882)),
    ("efficientnet_lite2", lite(1.1, 1.2), "", data(260, 0.89)),
    ("efficientnet_lite3", lite(1.2, 1.4), "", data(300, 0.904)),
    ("efficientnet_lite4", lite(1.4, 1.8), "", data(380, 0.922)),
    ("tf_efficientnet_lite0", tf(lite(1.0, 1.0)), "in1k", half(224, 0.875)),
    ("tf_efficientnet_lite1", tf(lite(1.0, 1.1)), "in1k", half(240, 0.882)),
    ("tf_efficientnet_lite2", tf(lite(1.1, 1.2)), "in1k", half(260, 0.89)),
    ("tf_efficientnet_lite3", tf(lite(1.2, 1.4)), "in1k", half(300, 0.904, "bilinear")),
    ("tf_efficientnet_lite4", tf(lite(1.4, 1.8)), "in1k", half(380, 0.92, "bilinear")),
    ("efficientnetv2_rw_t", scaled(deepen(V2_S, 0.9), 0.8, stem=24), "ra2_in1k", data(224, 1.0)),
    ("efficientnetv2_rw_s", RW_S, "ra2_in1k", data(288, 1.0)),
    ("efficientnetv2_rw_m", RW_M, "agc_in1k", data(320, 1.0)),
    ("efficientnetv2_s", S, "", data(288, 1.0)),
    ("efficientnetv2_m", M, "", data(320, 1.0)),
    ("efficientnetv2_l", L, "", data(384, 1.0)),
    ("tf_efficientnetv2_s", tf(S), TF21, half(300, 1.0)),
    ("tf_efficientnetv2_m", tf(M), TF21, squashed(half(384, 1.0))),
    ("tf_efficientnetv2_l", tf(L), TF21, squashed(half(384, 1.0))),
    ("tf_efficientnetv2_xl", tf(XL), "in21k_ft_in1k in21k", squashed(half(384, 1.0))),
    ("tf_efficientnetv2_b0", tf(v2_b(1.0, 1.0)), "in1k", data(192)),
    ("tf_efficientnetv2_b1", tf(v2_b(1.0, 1.1)), "in1k", data(192, 0.882)),
    ("tf_efficientnetv2_b2", tf(v2_b(1.1, 1.2)), "in1k", data(208, 0.89)),
    ("tf_efficientnetv2_b3", tf(v2_b(1.2, 1.4)), TF21, squashed(half(240, 0.9))),
    ("test_efficientnet", EfficientNetConfig(TINY, 24, 256), "r160_in1k", data(160, 0.95)),
]

register(
    {name: Variant(EfficientNet, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS}
)


MOBILENETV2: tuple[Stage, ...] = (
    (Row(DepthwiseSeparable, 16),),
    *(
        (Row(InvertedResidual, chs, 3, stride, 6, repeats),)
        for chs, stride, repeats in [(24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1)]
    ),
)


def mobilenetv2(width: float) -> EfficientNetConfig:
    """Multiply all channels by `width`; the head's channels do not decrease."""
    head_chs = max(1280, round_chs(1280 * width))
    return EfficientNetConfig(widen(MOBILENETV2, width), round_chs(32 * width), head_chs, RELU6)


def mobilenetv2_deep(width: float, depth: float) -> EfficientNetConfig:
    """Stem and head keep their channels, the first and last stage their depth."""
    stages = (MOBILENETV2[0], *deepen(MOBILENETV2[1:-1], depth), MOBILENETV2[-1])
    return EfficientNetConfig(widen(stages, width), style=RELU6)


register(
    {
        "mobilenetv2_035": Variant(EfficientNet, mobilenetv2(0.35)),
        "mobilenetv2_050": Variant(EfficientNet, mobilenetv2(0.5), ("lamb_in1k",)),
        "mobilenetv2_075": Variant(EfficientNet, mobilenetv2(0.75)),
        "mobilenetv2_100": Variant(EfficientNet, mobilenetv2(1.0), ("ra_in1k",)),
        "mobilenetv2_110d": Variant(EfficientNet, mobilenetv2_deep(1.1, 1.2), ("ra_in1k",)),
        "mobilenetv2_120d": Variant(EfficientNet, mobilenetv2_deep(1.2, 1.4), ("ra_in1k",)),
        "mobilenetv2_140": Variant(EfficientNet, mobilenetv2(1.4), ("ra_in1k",)),
    }
)
