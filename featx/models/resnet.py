"""ResNet, https://arxiv.org/abs/1512.03385, with the ResNeXt, Wide and D variants.

The stride of a stage is in the 3x3 convolution of its first block. D variants (https://arxiv.org/abs/1812.01187) have a
stem of three 3x3 convolutions and average in the shortcut. Reference: timm.
"""

from dataclasses import dataclass

from torch import nn

from ..backbone import Backbone
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.residual import BasicBlock, Bottleneck, Residual, init_conv_norm
from .layers.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class ResNetConfig:
    """depths: blocks per stage. stem: channels of its convolutions: one of 7x7, or several of 3x3."""

    depths: tuple[int, ...]
    block: type[BasicBlock | Bottleneck] = Bottleneck
    style: Residual = Residual()
    stem: tuple[int, ...] = (64,)
    in_chans: int = 3
    num_classes: int = 1000
    output_stride: int = 32


class ResNet(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: after the stem's activation, after each stage."""

    last_linear = "fc"

    def __init__(self, cfg: ResNetConfig) -> None:
        super().__init__()
        self.in_chans, chs = cfg.in_chans, cfg.stem[-1]
        self.conv1 = stem_convs(cfg.in_chans, cfg.stem)
        self.bn1 = nn.BatchNorm2d(chs)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        info = [FeatureInfo(chs, 2, "act1")]
        steps = plan_steps((1, 2, 2, 2), stem=4, output_stride=cfg.output_stride)
        for number, (depth, (step, reduction)) in enumerate(zip(cfg.depths, steps, strict=True), start=1):
            self.add_module(f"layer{number}", stage(cfg, depth, chs, 32 * 2**number, step))
            chs = 32 * 2**number * cfg.block.expansion
            info.append(FeatureInfo(chs, reduction, f"layer{number}"))
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(chs, cfg.num_classes) if cfg.num_classes else nn.Identity()
        self.feature_info = Levels(info)
        init_conv_norm(self)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                module.zero_init_last()


def stem_convs(in_chans: int, widths: tuple[int, ...]) -> nn.Module:
    """The convolutions before `bn1`; together they halve the image."""
    if len(widths) == 1:
        return nn.Conv2d(in_chans, widths[0], 7, 2, 3, bias=False)
    layers: list[nn.Module] = []
    for position, width in enumerate(widths[:-1]):
        conv = nn.Conv2d(in_chans, width, 3, 2 if position == 0 else 1, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        in_chans = width
    return nn.Sequential(*layers, nn.Conv2d(in_chans, widths[-1], 3, 1, 1, bias=False))


def stage(cfg: ResNetConfig, depth: int, in_chs: int, chs: int, step: Step) -> nn.Sequential:
    """`depth` blocks, the first of which changes the channels and takes the stride."""
    first = cfg.block(in_chs, chs, step, cfg.style)
    out_chs = chs * cfg.block.expansion
    return nn.Sequential(first, *(cfg.block(out_chs, chs, step.after, cfg.style) for _ in range(depth - 1)))


D_STEM, D = (32, 32, 64), Residual(avg_down=True)
A1 = DataConfig(crop=0.95)
D256 = DataConfig(size=(256, 256), crop=0.95)
TV = DataConfig(interpolation="bilinear")


def basic(*depths: int) -> ResNetConfig:
    return ResNetConfig(depths, BasicBlock)


def basic_d(*depths: int) -> ResNetConfig:
    return ResNetConfig(depths, BasicBlock, D, D_STEM)


def bottleneck(*depths: int, groups: int = 1, width: int = 64) -> ResNetConfig:
    return ResNetConfig(depths, Bottleneck, Residual(groups, width))


def bottleneck_d(*depths: int) -> ResNetConfig:
    return ResNetConfig(depths, Bottleneck, D, D_STEM)


A = "a1_in1k a2_in1k a3_in1k"
FB = "fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k"
RESNET50 = (
    f"{A} a1h_in1k am_in1k b1k_in1k b2k_in1k bamboo bt_in1k c1_in1k c2_in1k d_in1k {FB} gluon_in1k ra_in1k ram_in1k "
    "tv2_in1k tv_in1k"
)
A1H = f"a1h_in1k {A} gluon_in1k tv2_in1k tv_in1k"
VARIANTS = [
    ("resnet18", basic(2, 2, 2, 2), f"{A} {FB} gluon_in1k tv_in1k", A1),
    ("resnet34", basic(3, 4, 6, 3), f"{A} bt_in1k gluon_in1k ra4_e3600_r224_in1k tv_in1k", A1),
    ("resnet50", bottleneck(3, 4, 6, 3), RESNET50, A1),
    ("resnet101", bottleneck(3, 4, 23, 3), A1H, A1),
    ("resnet152", bottleneck(3, 8, 36, 3), A1H, A1),
    ("resnet18d", basic_d(2, 2, 2, 2), "ra2_in1k ra4_e3600_r224_in1k", DataConfig()),
    ("resnet34d", basic_d(3, 4, 6, 3), "ra2_in1k", DataConfig()),
    ("resnet50d", bottleneck_d(3, 4, 6, 3), f"ra2_in1k {A} gluon_in1k ra4_e3600_r224_in1k", DataConfig()),
    ("resnet101d", bottleneck_d(3, 4, 23, 3), "ra2_in1k gluon_in1k", D256),
    ("resnet152d", bottleneck_d(3, 8, 36, 3), "ra2_in1k gluon_in1k", D256),
    ("resnet200d", bottleneck_d(3, 24, 36, 3), "ra2_in1k", D256),
    (
        "resnext50_32x4d",
        bottleneck(3, 4, 6, 3, groups=32, width=4),
        f"a1h_in1k {A} {FB} gluon_in1k ra_in1k tv2_in1k tv_in1k",
        A1,
    ),
    (
        "resnext101_32x8d",
        bottleneck(3, 4, 23, 3, groups=32, width=8),
        f"tv_in1k {FB} fb_wsl_ig1b_ft_in1k tv2_in1k",
        TV,
    ),
    ("wide_resnet50_2", bottleneck(3, 4, 6, 3, width=128), "racm_in1k tv2_in1k tv_in1k", DataConfig()),
    ("wide_resnet101_2", bottleneck(3, 4, 23, 3, width=128), "tv_in1k tv2_in1k", TV),
]

register({name: Variant(ResNet, config, tuple(tags.split()), data) for name, config, tags, data in VARIANTS})
