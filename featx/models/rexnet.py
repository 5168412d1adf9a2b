"""ReXNet, https://arxiv.org/abs/2007.00992: channels increase linearly from block to block.

The shortcut of a block is added to the first channels of its output. `rexnetr_*` round all channels to multiples of 8
or 16. Reference: timm.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..backbone import Backbone, StridedConfig
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.attention import SEModule, round_chs
from .layers.conv_norm import ConvNorm
from .layers.drop_path import drop_path, rising_rates
from .layers.mobile import init_mobile
from .layers.pool import HEAD_POOL, pooled_chs, pooled_head
from .layers.steps import Step, plan_steps


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage. depth: number of blocks, the first with the stride; expand: inner over input channels of a block."""

    depth: int
    stride: int = 2
    expand: int = 6
    has_se: bool = True


STAGES = (Stage(1, 1, 1, False), Stage(2, has_se=False), Stage(2), Stage(6), Stage(5))


@dataclass(frozen=True, slots=True)
class ReXNetConfig(StridedConfig):
    """The configuration of a ReXNet.

    Attributes:
        width: multiplier of all channels.
        divisor: channels are rounded to its multiples.
        first_chs: channels of the first block, before `width`.
        growth: total increase of channels from the first block to one past the last, before `width`.
        se_ratio: channels of the squeeze-and-excitation relative to a block's inner channels.
    """

    width: float = 1.0
    divisor: int = 1
    first_chs: int = 16
    growth: int = 180
    se_ratio: float = 1 / 12
    drop_rate: float = field(default=0.2, kw_only=True)


class ReXNet(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the last block at each reduction."""

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    initialize = staticmethod(init_mobile)

    def __init__(self, cfg: ReXNetConfig) -> None:
        super().__init__()
        self.config, self.in_chans = cfg, cfg.in_chans
        chs, *widths = layer_chs(cfg)
        self.stem = ConvNorm(cfg.in_chans, chs, 3, Step(2), act=nn.SiLU)
        plan = plan_steps([stage.stride for stage in STAGES], stem=2, output_stride=cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, tuple(stage.depth for stage in STAGES))
        blocks: list[nn.Module] = []
        info: list[FeatureInfo] = []
        for stage, (step, reduction), stage_rates in zip(STAGES, plan, rates, strict=True):
            for rate in stage_rates:
                inner = round_chs(chs * stage.expand, cfg.divisor) if stage.expand > 1 else chs
                waist = round_chs(int(inner * cfg.se_ratio), cfg.divisor) if stage.has_se else 0
                blocks.append(LinearBottleneck(chs, inner, widths[len(blocks)], waist, step, rate))
                chs, step = widths[len(blocks) - 1], step.after
            info.append(FeatureInfo(chs, reduction, f"features.{len(blocks) - 1}"))
        self.num_features = round_chs(1280 * cfg.width, cfg.divisor)
        self.head_hidden_size = pooled_chs(self.num_features, cfg.global_pool)
        self.last_feature = f"features.{len(blocks)}"
        self.features = nn.Sequential(*blocks, ConvNorm(chs, self.num_features, act=nn.SiLU))
        self.head = pooled_head(self.num_features, cfg.num_classes, cfg.global_pool, cfg.drop_rate)
        self.feature_info = Levels(info)
        self.initialize(self)


class LinearBottleneck(nn.Module):
    """Expansion, depthwise convolution, linear projection: (N, in_chs, H, W) to (N, chs, H / stride, W / stride).

    Args:
        inner: channels of the depthwise convolution.
        waist: channels of the squeeze-and-excitation; 0 for none.
    """

    def __init__(self, in_chs: int, inner: int, chs: int, waist: int, step: Step, drop: float = 0.0) -> None:
        super().__init__()
        self.has_shortcut = step.stride == 1 and step.entry == step.dilation and in_chs <= chs
        self.conv_exp = ConvNorm(in_chs, inner, act=nn.SiLU) if inner != in_chs else nn.Identity()
        self.conv_dw = ConvNorm(inner, inner, 3, step, groups=inner)
        self.se = SEModule(inner, waist, nn.BatchNorm2d) if waist else nn.Identity()
        self.act_dw = nn.ReLU6(inplace=True)
        self.conv_pwl = ConvNorm(inner, chs)
        self.drop_path = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_pwl(self.act_dw(self.se(self.conv_dw(self.conv_exp(x)))))
        if not self.has_shortcut:
            return y
        y, chs = self.drop_path(y), x.shape[1]
        return torch.cat([y[:, :chs] + x, y[:, chs:]], 1)


def layer_chs(cfg: ReXNetConfig) -> list[int]:
    """Channels of the stem and of each block. At a width below 1, stem and first block keep the width-1 channels."""
    depth = sum(stage.depth for stage in STAGES)
    thin = min(cfg.width, 1.0)
    widths = [32 / thin, *(cfg.first_chs / thin + number * cfg.growth / depth for number in range(depth))]
    return [round_chs(round(chs * cfg.width), cfg.divisor) for chs in widths]


WIDTHS = {"100": 1.0, "130": 1.3, "150": 1.5, "200": 2.0, "300": 3.0}
IN12K, WIDE_CROP = ("sw_in12k_ft_in1k", "sw_in12k"), DataConfig(crop=0.95)

register(
    {
        **{f"rexnet_{name}": Variant(ReXNet, ReXNetConfig(width), ("nav_in1k",)) for name, width in WIDTHS.items()},
        "rexnetr_100": Variant(ReXNet, ReXNetConfig(1.0, 8)),
        "rexnetr_130": Variant(ReXNet, ReXNetConfig(1.3, 8)),
        "rexnetr_150": Variant(ReXNet, ReXNetConfig(1.5, 8)),
        "rexnetr_200": Variant(ReXNet, ReXNetConfig(2.0, 8), IN12K, WIDE_CROP),
        "rexnetr_300": Variant(ReXNet, ReXNetConfig(3.0, 16), IN12K, WIDE_CROP),
    }
)
