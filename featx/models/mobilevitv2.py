"""MobileViTv2, https://arxiv.org/abs/2206.02680: MobileViT with attention of linear cost.

A block enlarges a map whose sides are not multiples of the patch, and does not shrink it again: 224 pixels give 8 cells
at 1/32. In a stage with dilation instead of stride, the block's local convolution is dilated, too. Both are as in the
original (CVNets) and timm; transformers pads with zeros instead and dilates no block. References: timm, CVNets.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch.fx
from torch import Tensor, nn

from ..backbone import Backbone, StridedConfig
from ..errors import ArgumentError
from ..features import Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.attention import round_chs
from .layers.conv_norm import ConvNorm
from .layers.drop_path import drop_path, rising_rates
from .layers.mobilevit import (
    InvertedResidual,
    enlarged,
    from_patches,
    init_weights,
    stage_levels,
    to_patches,
    whole_patches,
)
from .layers.pool import HEAD_POOL, pooled_chs, pooled_head
from .layers.steps import Step, plan_steps

STRIDES, DEPTHS = (1, 2, 2, 2, 2), (1, 2, 2, 2, 2)
FIRST_ATTENTION = 8  # total stride of the first stage with attention

# symbolic tracers record these calls as a whole, because they branch on sizes and memory formats
torch.fx.wrap("enlarged")
torch.fx.wrap("to_patches")
torch.fx.wrap("from_patches")


@dataclass(frozen=True, slots=True)
class MobileViTV2Config(StridedConfig):
    """The configuration of a MobileViTv2, with names of transformers' MobileViTV2Config where it has them.

    Attributes:
        width_multiplier: of all channels, which are rounded to multiples of 8.
        expand_ratio: channels inside an inverted residual relative to its input.
        n_attn_blocks: attention blocks of the three stages with attention.
        base_attn_unit_dims: channels of these stages before the multiplier.
        ffn_multiplier: channels inside the MLPs relative to their input, rounded down to multiples of 16.
        conv_kernel_size: of the local convolutions of these stages; odd.
        hidden_act: activation after convolutions.
        local_dilation: dilate these local convolutions with `output_stride`; False as in transformers.
    """

    width_multiplier: float = 1.0
    n_attn_blocks: tuple[int, int, int] = (2, 4, 3)
    base_attn_unit_dims: tuple[int, int, int] = (128, 192, 256)
    expand_ratio: float = 2.0
    ffn_multiplier: float = 2.0
    conv_kernel_size: int = 3
    patch_size: int = 2
    hidden_act: type[nn.Module] = nn.SiLU
    layer_norm_eps: float = 1e-5
    attn_dropout: float = 0.0
    ffn_dropout: float = 0.0
    local_dilation: bool = True


class MobileViTV2(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: each stage."""

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    initialize = staticmethod(init_weights)

    def __init__(self, cfg: MobileViTV2Config) -> None:
        super().__init__()
        if cfg.conv_kernel_size % 2 == 0 or cfg.patch_size < 1:
            given = f"conv_kernel_size={cfg.conv_kernel_size}, patch_size={cfg.patch_size}"
            raise ArgumentError(f"{given}: expected an odd kernel and a patch of at least 1 pixel")
        self.config, self.in_chans, self.size_rule = cfg, cfg.in_chans, partial(grown_cells, patch=cfg.patch_size)
        stem_chs, *stage_chs = widths(cfg.width_multiplier)
        self.stem = ConvNorm(cfg.in_chans, stem_chs, 3, Step(2), act=cfg.hidden_act)
        steps, reductions = zip(*plan_steps(STRIDES, stem=2, output_stride=cfg.output_stride), strict=True)
        rates = rising_rates(cfg.drop_path_rate, DEPTHS)
        stages: list[nn.Module] = []
        for number, (chs, step) in enumerate(zip(stage_chs, steps, strict=True)):
            in_chs = (stem_chs, *stage_chs)[number]
            stages.append(stage(cfg, in_chs, chs, number, step, rates[number]))
        self.stages = nn.Sequential(*stages)
        self.head = pooled_head(stage_chs[-1], cfg.num_classes, cfg.global_pool, cfg.drop_rate)
        self.num_features = stage_chs[-1]
        self.head_hidden_size = pooled_chs(self.num_features, cfg.global_pool)
        self.feature_info = Levels(stage_levels(stem_chs, STRIDES, stage_chs, reductions))
        self.initialize(self)


def stage(cfg: MobileViTV2Config, in_chs: int, chs: int, number: int, step: Step, rates: list[float]) -> nn.Sequential:
    """Inverted residuals; in the last three stages, an attention block replaces the last one."""
    first = InvertedResidual(in_chs, chs, cfg.expand_ratio, step, cfg.hidden_act, rates[0])
    if number >= 2:
        return nn.Sequential(first, MobileViTV2Block(cfg, chs, number - 2, step, rates[1]))
    others = (InvertedResidual(chs, chs, cfg.expand_ratio, step.after, cfg.hidden_act, rate) for rate in rates[1:])
    return nn.Sequential(first, *others)


class MobileViTV2Block(nn.Module):
    """Local convolution, attention among patches, projection: (N, chs, H, W) to the same, enlarged to whole patches."""

    def __init__(self, cfg: MobileViTV2Config, chs: int, number: int, step: Step, drop: float) -> None:
        super().__init__()
        local = step.after if cfg.local_dilation else Step()
        attn_chs = round_chs(cfg.base_attn_unit_dims[number] * cfg.width_multiplier)
        self.patch = cfg.patch_size
        self.conv_kxk = ConvNorm(chs, chs, cfg.conv_kernel_size, local, chs, cfg.hidden_act)
        self.conv_1x1 = nn.Conv2d(chs, attn_chs, 1, bias=False)
        blocks = (LinearTransformer(cfg, attn_chs, drop) for _ in range(cfg.n_attn_blocks[number]))
        self.transformer = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(1, attn_chs, cfg.layer_norm_eps)
        self.conv_proj = ConvNorm(attn_chs, chs)

    def forward(self, x: Tensor) -> Tensor:
        x = enlarged(x, self.patch, align_corners=True)
        height, width = x.shape[-2:]
        x = to_patches(self.conv_1x1(self.conv_kxk(x)), self.patch)
        x = self.norm(self.transformer(x))
        return self.conv_proj(from_patches(x, self.patch, height, width))


class LinearTransformer(nn.Module):
    """Attention among the patches, then a layer per pixel: (N, chs, pixels, patches) to the same shape."""

    def __init__(self, cfg: MobileViTV2Config, chs: int, drop: float) -> None:
        super().__init__()
        waist = int(cfg.ffn_multiplier * chs) // 16 * 16
        self.norm1 = nn.GroupNorm(1, chs, cfg.layer_norm_eps)
        self.attn = LinearAttention(chs, cfg.attn_dropout)
        self.drop_path1 = drop_path(drop)
        self.norm2 = nn.GroupNorm(1, chs, cfg.layer_norm_eps)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(chs, waist, 1),
                act=cfg.hidden_act(),
                drop1=nn.Dropout(cfg.ffn_dropout),
                fc2=nn.Conv2d(waist, chs, 1),
                drop2=nn.Dropout(cfg.ffn_dropout),
            )
        )
        self.drop_path2 = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class LinearAttention(nn.Module):
    """Linear attention (N, chs, pixels, patches): scores weight the keys to a context, which gates the values."""

    def __init__(self, chs: int, drop: float) -> None:
        super().__init__()
        self.chs = chs
        self.qkv_proj = nn.Conv2d(chs, 1 + 2 * chs, 1)
        self.attn_drop = nn.Dropout(drop)
        self.out_proj = nn.Conv2d(chs, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv_proj(x).split([1, self.chs, self.chs], dim=1)
        scores = self.attn_drop(query.softmax(-1))  # (N, 1, pixels, patches)
        context = (key * scores).sum(-1, keepdim=True)  # (N, chs, pixels, 1)
        return self.out_proj(value.relu() * context)


def widths(multiplier: float) -> list[int]:
    """Channels of the stem and of the five stages."""
    stem = round_chs(min(max(32 * multiplier, 16), 64))
    return [stem, round_chs(64 * multiplier, 16), *(round_chs(chs * multiplier) for chs in (128, 256, 384, 512))]


def grown_cells(side: int, reduction: int, patch: int = 2) -> int:
    """Cells of a map along a side of `side` pixels: every stage with attention rounds up to whole patches."""
    cells, total = side, 1
    while total < reduction:
        cells, total = -(-cells // 2), total * 2
        cells = whole_patches(cells, patch) if total >= FIRST_ATTENTION else cells
    return cells


DATA = DataConfig((256, 256), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=0.888)
LARGER = {"cvnets_in22k_ft_in1k_384": {"size": (384, 384), "crop": 1.0}}
IN1K, IN22K = ("cvnets_in1k",), ("cvnets_in1k", "cvnets_in22k_ft_in1k", "cvnets_in22k_ft_in1k_384")

register(
    {
        f"mobilevitv2_{width:03}": Variant(MobileViTV2, MobileViTV2Config(width / 100), tags, DATA, LARGER)
        for tags, widths in {IN1K: (50, 75, 100, 125), IN22K: (150, 175, 200)}.items()
        for width in widths
    }
)
