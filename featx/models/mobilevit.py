"""MobileViT, https://arxiv.org/abs/2110.02178: convolutions, and attention among patches in the later stages.

A block resizes a map whose sides are not multiples of the patch, and resizes it back. In a stage with dilation instead
of stride, the block's local convolution is not dilated, as in the original (CVNets) and transformers;
`local_dilation=True` dilates it, as timm does. The last stage and its expansion are levels; timm lists the expansion
only. Any table of stages can be built, or read from the YAML file of a NetsPresso model. References: timm, CVNets,
NetsPresso Trainer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.fx
from torch import Tensor, nn

from ..backbone import Backbone, StridedConfig
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.conv_norm import ConvNorm
from .layers.drop_path import rising_rates
from .layers.mobilevit import (
    InvertedResidual,
    enlarged,
    from_enlarged,
    init_weights,
    stage_levels,
    to_tokens,
)
from .layers.pool import HEAD_POOL, pooled_chs, pooled_head
from .layers.stage_table import MobileViTStage, Mv2Stage, StageRow, plan_stages, read_table
from .layers.steps import Step
from .layers.transformer import Block, TransformerStyle

MOST_EXPANDED = 960

# symbolic tracers record these calls as a whole, because they branch on sizes and memory formats
torch.fx.wrap("enlarged")
torch.fx.wrap("from_enlarged")


@dataclass(frozen=True, slots=True)
class MobileViTConfig(StridedConfig):
    """The configuration of a MobileViT.

    Attributes:
        stages: in running order, after a stem of stride 2.
        stem_chs: channels of the stem.
        attention_dropout_prob: dropout of attention weights in the transformer blocks.
        ffn_dropout_prob: dropout of the MLPs in the transformer blocks.
        output_expansion_ratio: channels of the last map relative to the last stage, at most 960 channels.
        use_fusion_layer: whether a block fuses its input with the output of attention.
        local_dilation: also dilate the blocks' local convolutions, as timm does.
    """

    stages: tuple[StageRow, ...]
    stem_chs: int = 16
    patch_size: int = 2
    num_attention_heads: int = 4
    attention_dropout_prob: float = 0.0
    ffn_dropout_prob: float = 0.0
    output_expansion_ratio: float = 4
    use_fusion_layer: bool = True
    local_dilation: bool = False


class MobileViT(Backbone):
    """Images (N, in_chans, H, W) to logits (N, num_classes).

    Levels: the last stage at each reduction, and the expansion of the deepest.
    """

    last_linear = "head.fc"
    pool_layers = HEAD_POOL
    dense_level = -2
    initialize = staticmethod(init_weights)

    def __init__(self, cfg: MobileViTConfig) -> None:
        super().__init__()
        _check_table(cfg)
        self.config, self.in_chans = cfg, cfg.in_chans
        chs = [cfg.stem_chs, *(row.out_channels for row in cfg.stages)]
        plan = plan_stages(cfg.stages, cfg.output_stride)
        rates = rising_rates(cfg.drop_path_rate, tuple(row.depth for row in cfg.stages))
        self.stem = ConvNorm(cfg.in_chans, cfg.stem_chs, 3, Step(2), act=nn.SiLU)
        self.stages = nn.Sequential(
            *(
                stage(cfg, row, in_chs, step, drops)
                for row, in_chs, (step, _), drops in zip(cfg.stages, chs[:-1], plan, rates, strict=True)
            )
        )
        self.num_features = min(int(cfg.output_expansion_ratio * chs[-1]), MOST_EXPANDED)
        self.final_conv = ConvNorm(chs[-1], self.num_features, act=nn.SiLU)
        self.head_hidden_size = pooled_chs(self.num_features, cfg.global_pool)
        self.head = pooled_head(self.num_features, cfg.num_classes, cfg.global_pool, cfg.drop_rate)
        strides, reductions = [row.stride for row in cfg.stages], [reduction for _, reduction in plan]
        info = stage_levels(cfg.stem_chs, strides, chs[1:], reductions)
        self.feature_info = Levels([*info, FeatureInfo(self.num_features, reductions[-1], "final_conv")])
        self.initialize(self)


def stage(cfg: MobileViTConfig, row: StageRow, in_chs: int, step: Step, rates: list[float]) -> nn.Sequential:
    """The blocks of a row, one per drop-path rate."""
    chs, expand = row.out_channels, row.ir_expansion_ratio
    if isinstance(row, MobileViTStage):
        block = MobileViTBlock(cfg, row, step.dilation if cfg.local_dilation else 1, rates[-1])
        return nn.Sequential(
            *(InvertedResidual(in_chs, chs, expand, step, nn.SiLU, rate) for rate in rates[:-1]), block
        )
    first = InvertedResidual(in_chs, chs, expand, step, nn.SiLU, rates[0])
    return nn.Sequential(first, *(InvertedResidual(chs, chs, expand, step.after, nn.SiLU, rate) for rate in rates[1:]))


class MobileViTBlock(nn.Module):
    """Local convolution, attention among patches, projection, fusion with the input; keeps (N, chs, H, W)."""

    def __init__(self, cfg: MobileViTConfig, row: MobileViTStage, dilation: int, drop: float) -> None:
        super().__init__()
        chs, dim = row.out_channels, row.attention_channels
        self.patch = cfg.patch_size
        self.conv_kxk = ConvNorm(chs, chs, 3, Step(1, dilation, dilation), act=nn.SiLU)
        self.conv_1x1 = nn.Conv2d(chs, dim, 1, bias=False)
        blocks = (transformer_block(cfg, row, drop) for _ in range(row.num_blocks))
        self.transformer = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = ConvNorm(dim, chs, act=nn.SiLU)
        self.conv_fusion = ConvNorm(2 * chs, chs, 3, act=nn.SiLU) if cfg.use_fusion_layer else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_proj(self.attend(self.conv_1x1(self.conv_kxk(x))))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), dim=1))

    def attend(self, x: Tensor) -> Tensor:
        """Attention among the pixels at the same position in their patches: (N, dim, H, W) to the same shape."""
        tokens = to_tokens(enlarged(x, self.patch), self.patch)  # (N, pixels, patches, dim)
        mixed = self.norm(self.transformer(tokens.flatten(0, 1))).reshape(tokens.shape)
        return from_enlarged(mixed, self.patch, x)


def transformer_block(cfg: MobileViTConfig, row: MobileViTStage, drop_path: float) -> Block:
    """A transformer block with dropout of attention weights only, and MLPs of the row's width."""
    # the extra half channel absorbs rounding of the ratio and is truncated in the product
    ratio = (row.ffn_intermediate_channels + 0.5) / row.attention_channels
    drop, attn_drop = cfg.ffn_dropout_prob, cfg.attention_dropout_prob
    style = TransformerStyle(mlp_ratio=ratio, act=nn.SiLU, eps=1e-5, drop=drop, attn_drop=attn_drop)
    block = Block(row.attention_channels, cfg.num_attention_heads, style, drop_path)
    block.attn.proj_drop = nn.Dropout(0.0)
    return block


def _check_table(cfg: MobileViTConfig) -> None:
    """ArgumentError that lists everything invalid in the configuration."""
    heads, in_chs, problems = cfg.num_attention_heads, cfg.stem_chs, []
    if not cfg.stages or min(cfg.patch_size, heads) < 1:
        given = f"{len(cfg.stages)} stages, patch_size={cfg.patch_size}, num_attention_heads={heads}"
        raise ArgumentError(f"{given}: expected at least 1 of each")
    for number, row in enumerate(cfg.stages):
        if min(row.num_blocks, row.stride) < 1:
            problems.append(f"stage {number}: num_blocks={row.num_blocks}, stride={row.stride}; expected 1 or more")
        if isinstance(row, MobileViTStage) and row.attention_channels % heads:
            problems.append(
                f"stage {number}: attention_channels={row.attention_channels} do not divide by {heads} heads"
            )
        if isinstance(row, MobileViTStage) and row.stride == 1 and row.out_channels != in_chs:
            why = f"without a stride it keeps the {in_chs} that enter it"
            problems.append(f"stage {number}: out_channels={row.out_channels}, but {why}")
        in_chs = row.out_channels
    if problems:
        raise ArgumentError("this MobileViT cannot be built:\n" + "\n".join(f"  {problem}" for problem in problems))


def read_config(path: str | Path) -> MobileViTConfig:
    """Read a configuration from a YAML file in the format of NetsPresso Trainer."""
    rows, params = read_table(path)
    return MobileViTConfig(rows, **params)


def table(chs: tuple[int, ...], attn_chs: tuple[int, int, int], expand: float) -> tuple[StageRow, ...]:
    """The stages of the published models."""
    rows: list[StageRow] = [Mv2Stage(chs[0], 1, 1, expand), Mv2Stage(chs[1], 3, 2, expand)]
    for out_chs, dim, depth in zip(chs[2:], attn_chs, (2, 4, 3), strict=True):
        rows.append(MobileViTStage(out_chs, depth, 2, expand, dim, 2 * dim, dilate=False))
    return tuple(rows)


XXS = table((16, 24, 48, 64, 80), (64, 80, 96), 2.0)
XS = table((32, 48, 64, 80, 96), (96, 120, 144), 4.0)
S = table((32, 64, 96, 128, 160), (144, 192, 240), 4.0)
DATA = DataConfig((256, 256), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=0.9)

register(
    {
        f"mobilevit_{size}": Variant(MobileViT, MobileViTConfig(rows), ("cvnets_in1k",), DATA)
        for size, rows in {"xxs": XXS, "xs": XS, "s": S}.items()
    }
)
