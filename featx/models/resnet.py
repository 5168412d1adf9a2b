"""ResNet, https://arxiv.org/abs/1512.03385, with the ResNeXt, Wide, C, D, S, T, RS, SE, ECA and GroupNorm variants.

The stride of a stage is in the 3x3 convolution of its first block. C, D, S and T variants have a stem of three 3x3
convolutions, D and T average in the shortcut (https://arxiv.org/abs/1812.01187). Reference: timm.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from torch import nn

from ..backbone import Backbone, StridedConfig, classifier
from ..features import FeatureInfo, Levels
from ..preprocessing import INCEPTION, DataConfig
from ..registry import Variant, register
from .layers.attention import EfficientChannelAttention, se_module, wide_se_module
from .layers.drop_path import rising_rates
from .layers.normed import ConvNorms
from .layers.pool import flatten, global_pool, pooled_chs
from .layers.residual import BasicBlock, Bottleneck, Residual, conv3x3, init_conv_norm
from .layers.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class ResNetConfig(StridedConfig):
    """The configuration of a ResNet.

    Attributes:
        depths: blocks per stage.
        stem: channels of the stem's convolutions: one of 7x7, or several of 3x3.
        max_pool: the pool after the stem.
        conv_pool: a strided convolution instead of the pool (https://arxiv.org/abs/2103.07579).
    """

    depths: tuple[int, ...]
    block: type[BasicBlock | Bottleneck] = Bottleneck
    style: Residual = Residual()
    stem: tuple[int, ...] = (64,)
    max_pool: Callable[[], nn.Module] = partial(nn.MaxPool2d, kernel_size=3, stride=2, padding=1)
    conv_pool: bool = False


class ResNet(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: after the stem's activation, after each stage."""

    last_linear = "fc"
    pool_layers = ("global_pool", "flatten")
    initialize = staticmethod(init_conv_norm)

    def __init__(self, cfg: ResNetConfig) -> None:
        super().__init__()
        self.config, self.in_chans, chs = cfg, cfg.in_chans, cfg.stem[-1]
        self.conv1 = stem_convs(cfg)
        self.bn1 = cfg.style.norm(chs)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = conv_pool(chs, cfg.style) if cfg.conv_pool else cfg.max_pool()
        info = [FeatureInfo(chs, 2, "act1")]
        steps = plan_steps((1, 2, 2, 2), stem=4, output_stride=cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, cfg.depths)
        for number, (stage_rates, (step, reduction)) in enumerate(zip(rates, steps, strict=True), start=1):
            self.add_module(f"layer{number}", stage(cfg, chs, 32 * 2**number, step, stage_rates))
            chs = 32 * 2**number * cfg.block.expansion
            info.append(FeatureInfo(chs, reduction, f"layer{number}"))
        self.global_pool = global_pool(cfg.global_pool)
        self.flatten = flatten(cfg.global_pool)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head_hidden_size = pooled_chs(chs, cfg.global_pool)
        self.fc = classifier(self.head_hidden_size, cfg.num_classes, cfg.global_pool)
        self.feature_info, self.num_features = Levels(info), chs
        self.initialize(self)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                module.zero_init_last()


def stem_convs(cfg: ResNetConfig) -> nn.Module:
    """The convolutions before `bn1`; together they halve the image."""
    if len(cfg.stem) == 1:
        return nn.Conv2d(cfg.in_chans, cfg.stem[0], 7, 2, 3, bias=False)
    layers: list[nn.Module] = []
    for in_chs, chs in pairwise((cfg.in_chans, *cfg.stem[:-1])):
        layers += [conv3x3(in_chs, chs, 1 if layers else 2, 1), cfg.style.norm(chs), nn.ReLU(inplace=True)]
    return ConvNorms(*layers, conv3x3(cfg.stem[-2], cfg.stem[-1], 1, 1))


def conv_pool(chs: int, style: Residual) -> nn.Sequential:
    """(N, chs, H, W) to (N, chs, H / 2, W / 2) by a convolution."""
    return ConvNorms(conv3x3(chs, chs, 2, 1), style.norm(chs), nn.ReLU(inplace=True))


def stage(cfg: ResNetConfig, in_chs: int, chs: int, step: Step, rates: list[float]) -> nn.Sequential:
    """One block per drop-path rate; the first has the stride and changes the channels."""
    first = cfg.block(in_chs, chs, step, cfg.style, rates[0])
    out_chs = chs * cfg.block.expansion
    return nn.Sequential(first, *(cfg.block(out_chs, chs, step.after, cfg.style, rate) for rate in rates[1:]))


def group_norm(chs: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups (https://arxiv.org/abs/1803.08494)."""
    return nn.GroupNorm(32, chs)


DEEP, TIERED = (32, 32, 64), (24, 32, 64)
SE = Residual(attn=se_module)
AVG = Residual(avg_down=True)
SE_AVG, ECA_AVG, RS = (replace(AVG, attn=attn) for attn in (se_module, EfficientChannelAttention, wide_se_module))
R18 = R26 = (2, 2, 2, 2)
R34 = R50 = (3, 4, 6, 3)
R101, R152, R200 = (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)


def basic(depths: tuple[int, ...], style: Residual = Residual(), stem: tuple[int, ...] = (64,)) -> ResNetConfig:
    return ResNetConfig(depths, BasicBlock, style, stem)


def bottleneck(depths: tuple[int, ...], style: Residual = Residual(), stem: tuple[int, ...] = (64,)) -> ResNetConfig:
    return ResNetConfig(depths, Bottleneck, style, stem)


def next_(groups: int, width: int, style: Residual = Residual()) -> Residual:
    return replace(style, groups=groups, group_width=width)


def data(size: int = 224, crop: float = 0.875, interpolation: str = "bicubic") -> DataConfig:
    return DataConfig((size, size), interpolation=interpolation, crop=crop)


A = "a1_in1k a2_in1k a3_in1k"
FB = "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k"
RESNET50 = (
    f"{A} a1h_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k c2_in1k d_in1k {FB} gluon_in1k ra_in1k ram_in1k "
    "tv2_in1k tv_in1k"
)
A1H = f"a1h_in1k {A} gluon_in1k tv2_in1k tv_in1k"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
LESS = {"size": (224, 224), "interpolation": "bicubic", "crop": 0.875}
BILINEAR = LESS | {"interpolation": "bilinear"}
TAGS = {
    **{tag: {"size": (224, 224), "crop": 0.95} for tag in ("a1_in1k", "a2_in1k")},
    "a3_in1k": {"size": (160, 160), "crop": 0.95},
    "a1h_in1k": {"size": (176, 176), "crop": 0.9},
    **dict.fromkeys(("am_in1k", "bt_in1k", "gluon_in1k", "ra_in1k", "ra2_in1k", "ram_in1k"), LESS),
    "bamboo": {"crop": 1.0},
    **dict.fromkeys(("tv_in1k", *FB.split()), BILINEAR),
    "tv2_in1k": BILINEAR | {"size": (176, 176)},
    "ra4_e3600_r224_in1k": INCEPTION | {"crop": 0.9},
    "resnet50d.ra4_e3600_r224_in1k": INCEPTION | {"crop": 0.95},
}
VARIANTS = [
    ("resnet10t", basic((1, 1, 1, 1), AVG, TIERED), "c3_in1k", data(176)),
    ("resnet14t", bottleneck((1, 1, 1, 1), AVG, TIERED), "c3_in1k", data(176)),
    ("resnet18", basic(R18), f"{A} {FB} gluon_in1k tv_in1k", data(crop=0.95)),
    ("resnet18d", basic(R18, AVG, DEEP), "ra2_in1k ra4_e3600_r224_in1k", data()),
    ("resnet26", bottleneck(R26), "bt_in1k", data()),
    ("resnet26d", bottleneck(R26, AVG, DEEP), "bt_in1k", data()),
    ("resnet26t", bottleneck(R26, AVG, TIERED), "ra2_in1k", data(256, 0.94)),
    ("resnet34", basic(R34), f"{A} bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k", data(crop=0.95)),
    ("resnet34d", basic(R34, AVG, DEEP), "ra2_in1k", data()),
    ("resnet50", bottleneck(R50), RESNET50, data(crop=0.95)),
    ("resnet50c", bottleneck(R50, stem=DEEP), "gluon_in1k", data()),
    ("resnet50d", bottleneck(R50, AVG, DEEP), f"ra2_in1k {A} gluon_in1k ra4_e3600_r224_in1k", data()),
    ("resnet50s", bottleneck(R50, stem=(64, 64, 128)), "gluon_in1k", data()),
    ("resnet50t", bottleneck(R50, AVG, TIERED), "", data()),
    ("resnet50_gn", bottleneck(R50, Residual(norm=group_norm)), "a1h_in1k", data(crop=0.94)),
    ("resnet101", bottleneck(R101), A1H, data(crop=0.95)),
    ("resnet101c", bottleneck(R101, stem=DEEP), "gluon_in1k", data()),
    ("resnet101d", bottleneck(R101, AVG, DEEP), "ra2_in1k gluon_in1k", data(256, 0.95)),
    ("resnet101s", bottleneck(R101, stem=(64, 64, 128)), "gluon_in1k", data()),
    ("resnet152", bottleneck(R152), A1H, data(crop=0.95)),
    ("resnet152c", bottleneck(R152, stem=DEEP), "gluon_in1k", data()),
    ("resnet152d", bottleneck(R152, AVG, DEEP), "ra2_in1k gluon_in1k", data(256, 0.95)),
    ("resnet152s", bottleneck(R152, stem=(64, 64, 128)), "gluon_in1k", data()),
    ("resnet200", bottleneck(R200), "", data()),
    ("resnet200d", bottleneck(R200, AVG, DEEP), "ra2_in1k", data(256, 0.95)),
    (
        "resnext50_32x4d",
        bottleneck(R50, next_(32, 4)),
        f"a1h_in1k {A} {FB} gluon_in1k ra_in1k tv2_in1k tv_in1k",
        data(crop=0.95),
    ),
    ("resnext50d_32x4d", bottleneck(R50, next_(32, 4, AVG), DEEP), "bt_in1k", data()),
    ("resnext101_32x4d", bottleneck(R101, next_(32, 4)), f"{FB} gluon_in1k", data(interpolation="bilinear")),
    (
        "resnext101_32x8d",
        bottleneck(R101, next_(32, 8)),
        f"tv_in1k {FB} fb_wsl_ig1b_ft_in1k tv2_in1k",
        data(interpolation="bilinear"),
    ),
    ("resnext101_64x4d", bottleneck(R101, next_(64, 4)), "c1_in1k gluon_in1k tv_in1k", data(crop=0.95)),
    ("wide_resnet50_2", bottleneck(R50, next_(1, 128)), "racm_in1k tv2_in1k tv_in1k", data()),
    ("wide_resnet101_2", bottleneck(R101, next_(1, 128)), "tv_in1k tv2_in1k", data(interpolation="bilinear")),
    ("seresnet18", basic(R18, SE), "", data()),
    ("seresnet34", basic(R34, SE), "", data()),
    ("seresnet50", bottleneck(R50, SE), f"{A} ra2_in1k", data(crop=0.95)),
    ("seresnet50t", bottleneck(R50, SE_AVG, TIERED), "", data()),
    ("seresnet101", bottleneck(R101, SE), "", data()),
    ("seresnet152", bottleneck(R152, SE), "", data()),
    ("seresnet152d", bottleneck(R152, SE_AVG, DEEP), "ra2_in1k", data(256, 0.95)),
    ("seresnext50_32x4d", bottleneck(R50, next_(32, 4, SE)), "racm_in1k gluon_in1k", data()),
    ("seresnext101_32x4d", bottleneck(R101, next_(32, 4, SE)), "gluon_in1k", data()),
    ("seresnext101_32x8d", bottleneck(R101, next_(32, 8, SE)), "ah_in1k", data(crop=0.95)),
    ("seresnext101_64x4d", bottleneck(R101, next_(64, 4, SE)), "gluon_in1k", data()),
    ("ecaresnet26t", bottleneck(R26, ECA_AVG, TIERED), "ra2_in1k", data(256)),
    ("ecaresnet50d", bottleneck(R50, ECA_AVG, DEEP), "miil_in1k", data()),
    ("ecaresnet50t", bottleneck(R50, ECA_AVG, TIERED), f"ra2_in1k {A}", data(256)),
    ("ecaresnet101d", bottleneck(R101, ECA_AVG, DEEP), "miil_in1k", data()),
    ("ecaresnet269d", bottleneck((3, 30, 48, 8), ECA_AVG, DEEP), "ra2_in1k", data(320, 0.95)),
    ("resnetrs50", ResNetConfig(R50, style=RS, stem=DEEP, conv_pool=True), "tf_in1k", data(160, 0.91)),
    ("resnetrs101", ResNetConfig(R101, style=RS, stem=DEEP, conv_pool=True), "tf_in1k", data(192, 0.94)),
]

register({name: Variant(ResNet, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS})
