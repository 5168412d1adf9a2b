"""ViTs with rotary position embeddings: EVA-02 (https://arxiv.org/abs/2303.11331), DINOv3
(https://arxiv.org/abs/2508.10104), Perception Encoder (https://arxiv.org/abs/2504.13181) and RoPE-ViT
(https://arxiv.org/abs/2403.13298), with EVA (https://arxiv.org/abs/2211.07636), which has learned positions only.

Images of any size are accepted: they are zero-padded to whole patches, rotary embeddings are computed for the grid of
patches, and learned ones are interpolated to it. Positions are not scaled at random in training, as DINOv3 does.
Reference: timm's Eva with dynamic_img_size and dynamic_img_pad.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..backbone import classifier
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .layers.drop_path import rising_rates
from .layers.pos_embed import resample_positions
from .layers.rotary import Rope
from .layers.rotary_block import KeylessBiasAttention, LatentPool, RotaryAttention, RotaryBlock, RotaryStyle
from .layers.token_pyramid import TokenPyramid
from .layers.transformer import Mlp, TransformerStyle
from .vit import POOLS, PatchEmbed, ViTConfig, layer_norm, norm_eps, position_grid, problems_of

# symbolic tracers record this call as a whole, because it branches on sizes
torch.fx.wrap("resample_positions")

LATENT = "map"


@dataclass(frozen=True, slots=True)
class RotaryViTConfig(ViTConfig):
    """The configuration of a RotaryViT: that of a ViT without `stem` and `representation`, and these.

    Attributes:
        style: of the blocks, with the rotary position embeddings.
        positions: whether there are learned position embeddings.
        last_norm: whether there is a norm after the blocks or, with `fc_norm`, after the pool.
        global_pool: also "map", attention of a learned query to all tokens.
        pool_heads: heads of that attention.
    """

    style: RotaryStyle = RotaryStyle()
    positions: bool = field(default=True, kw_only=True)
    last_norm: bool = field(default=True, kw_only=True)
    pool_heads: int = field(default=8, kw_only=True)

    def stated_by(self, names: Collection[str]) -> dict[str, Any]:
        """Those of a ViT, and the `style` with the biases of queries and values that the checkpoint has."""
        stated = ViTConfig.stated_by(self, names)
        has_biases = "blocks.0.attn.q_bias" in names
        if has_biases and self.style.attention is RotaryAttention:
            stated["style"] = replace(self.style, attention=KeylessBiasAttention)
        if not has_biases and self.style.attention is KeylessBiasAttention and "blocks.0.attn.qkv.weight" in names:
            stated["style"] = replace(self.style, attention=RotaryAttention, qkv_bias="blocks.0.attn.qkv.bias" in names)
        return stated


class RotaryViT(TokenPyramid):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the patches after each block."""

    last_linear = "head"
    pool_layers = ("pool",)

    def __init__(self, cfg: RotaryViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(cfg)
        check(cfg, self.patch_embed.reduction)
        self.config, self.grid = cfg, position_grid(cfg, self.patch_embed.reduction)
        self.in_chans, self.num_prefix_tokens = cfg.in_chans, cfg.class_token + cfg.registers
        self.norm_maps, self.antialias, self.position_excess = cfg.norm_maps, cfg.antialias, cfg.position_excess
        self.num_positioned = self.num_prefix_tokens if cfg.prefix_positions else 0
        self.cls_token, self.reg_token = drawn(cfg.dim, int(cfg.class_token)), drawn(cfg.dim, cfg.registers)
        count = self.num_positioned + self.grid[0] * self.grid[1]
        self.pos_embed = drawn(cfg.dim, count) if cfg.positions else None
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        rope, prefix = cfg.style.rope, self.num_prefix_tokens
        self.rope = Rope(rope, cfg.depth, cfg.heads, cfg.dim // cfg.heads, prefix) if rope else None
        self.norm_pre = layer_norm(cfg, cfg.pre_norm)
        self.blocks = nn.ModuleList(blocks_of(cfg))
        self.norm = layer_norm(cfg, cfg.last_norm and not cfg.fc_norm)
        self.pool = nn.Identity() if cfg.global_pool == LATENT else POOLS[cfg.global_pool](prefix)
        self.attn_pool = latent_pool(cfg)
        self.fc_norm = layer_norm(cfg, cfg.last_norm and cfg.fc_norm)
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = classifier(cfg.dim, cfg.num_classes)
        self.feature_info = Levels(
            FeatureInfo(cfg.dim, self.patch_embed.reduction, f"blocks.{i}") for i in range(cfg.depth)
        )
        self.num_features = self.head_hidden_size = cfg.dim
        self.initialize(self)

    @staticmethod
    def initialize(module: nn.Module, /) -> None:
        """Normal linear layers of deviation 0.02 with zero biases, in place; the last layers of blocks are smaller."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if isinstance(module, RotaryViT):
            for depth, block in enumerate(module.blocks, 1):
                for path in ("attn.proj", "mlp.fc2"):
                    block.get_parameter(f"{path}.weight").data.div_((2 * depth) ** 0.5)

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last norm (N, num_prefix_tokens + h * w, dim), prefix tokens first."""
        *_, tokens = self._outputs(self.patch_embed(x))
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens that `forward_features` returns, or pooled features without classes."""
        x = self.head_drop(self.fc_norm(self.attn_pool(self.pool(x))))
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer, as `Backbone.reset_classifier`; the pool "map" has weights and stays."""
        own = self.config.global_pool
        if global_pool not in (None, own) and LATENT in (own, global_pool):
            raise ArgumentError(
                f"global_pool={global_pool!r}: this model pools with {own!r}, and {LATENT!r} has weights that others "
                f"lack: build the model with create_model({self.architecture!r}, global_pool={global_pool!r})"
            )
        super().reset_classifier(num_classes, global_pool)

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        yield from ("pool", "attn_pool", "fc_norm", "head_drop", "head")
        if not self.norm_maps:
            yield "norm"
        yield from (f"blocks.{i}" for i in range(levels[-1] + 1, len(self.blocks)))

    def _block_outputs(self, tokens: Tensor, size: Sequence[int], added: int = 0) -> Iterator[Tensor]:
        tables = [None] * len(self.blocks) if self.rope is None else self.rope(size, tokens.device, added)
        for block, table in zip(self.blocks, tables, strict=False):  # a cut model has fewer blocks
            tokens = block(tokens, table)
            yield tokens

    def _tokens(self, patches: Tensor) -> Tensor:
        height, width = patches.shape[-2:]
        prefix = [
            token.expand(patches.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        tokens = patches.flatten(2).transpose(1, 2)
        if self.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        else:
            table = resample_positions(
                self.pos_embed,
                (height, width),
                grid=self.grid,
                prefix=self.num_positioned,
                antialias=self.antialias,
                excess=self.position_excess,
            )
            if self.num_positioned:
                tokens = torch.cat([*prefix, tokens], dim=1) + table
            else:
                tokens = torch.cat([*prefix, tokens + table], dim=1)
        return self.norm_pre(self.pos_drop(tokens))


def blocks_of(cfg: RotaryViTConfig) -> Iterator[RotaryBlock]:
    """The blocks of a RotaryViT, with rising rates of stochastic depth."""
    ratio = cfg.style.mlp_ratio if cfg.mlp_ratio is None else cfg.mlp_ratio
    style = replace(
        cfg.style, mlp_ratio=ratio, eps=norm_eps(cfg), drop=cfg.proj_drop_rate, attn_drop=cfg.attn_drop_rate
    )
    (rates,) = rising_rates(cfg.drop_path_rate, (cfg.depth,))
    return (RotaryBlock(cfg.dim, cfg.heads, style, rate) for rate in rates)


def latent_pool(cfg: RotaryViTConfig) -> nn.Module:
    """The pool "map", or the identity for another pool."""
    if cfg.global_pool != LATENT:
        return nn.Identity()
    return LatentPool(cfg.dim, cfg.pool_heads, TransformerStyle(mlp=Mlp, eps=norm_eps(cfg)))


def drawn(dim: int, count: int) -> nn.Parameter | None:
    """Parameter (1, count, dim) from a normal distribution of deviation 0.02; None for a count of 0."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02)) if count else None


def check(cfg: RotaryViTConfig, reduction: int) -> None:
    """ArgumentError that lists all conflicts in `cfg`, whose patches cover `reduction` pixels."""
    found = problems_of(cfg, reduction, [*POOLS, LATENT])
    problems = {
        "stem and representation are fields of ViT, which RotaryViT does not have": cfg.stem or cfg.representation,
        f"dim={cfg.dim} in heads={cfg.heads} gives heads of channels that are not a multiple of 4, as rotary position "
        "embeddings need": cfg.style.rope and cfg.dim % (4 * cfg.heads),
        "norm_maps=True has no norm to apply: this variant has no last norm": cfg.norm_maps and not cfg.last_norm,
        f"dim={cfg.dim} is not a multiple of pool_heads={cfg.pool_heads}": cfg.global_pool == LATENT
        and cfg.dim % cfg.pool_heads,
    }
    found += [problem for problem, holds in problems.items() if holds]
    if found:
        raise ArgumentError("; ".join(found))
