"""ViT, https://arxiv.org/abs/2010.11929, with DeiT (https://arxiv.org/abs/2012.12877), DeiT III, DINOv2 and CLIP's.

Images of any size are accepted: they are zero-padded at the right and bottom to whole patches, and the learned position
embeddings are interpolated to the grid of patches. With `antialias=False` the interpolation is that of BLIP
(https://arxiv.org/abs/2201.12086), whose image encoder is vit_base_patch16_224 with num_classes=0. Reference: timm with
dynamic_img_size and dynamic_img_pad.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import BackboneConfig, classifier
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from ..image_checks import Sides, image_sides
from .layers.drop_path import rising_rates
from .layers.hybrid import hybrid_stem
from .layers.pos_embed import resample_positions
from .layers.token_pyramid import TokenPyramid
from .layers.transformer import Block, TransformerStyle, init_transformer

# symbolic tracers record this call as a whole, because it branches on sizes
torch.fx.wrap("resample_positions")


@dataclass(frozen=True, slots=True)
class ViTConfig(BackboneConfig):
    """The configuration of a ViT.

    Attributes:
        dim: channels of a token.
        patch: side of a patch in pixels; with `stem`, in cells of its map.
        image_size: side, or (height, width), in pixels. It only sets the grid of position embeddings, in whole patches.
        mlp_ratio: hidden channels of the MLPs relative to `dim`; None for the style's default.
        stem: blocks per stage of a ResNet before the patches; None for none.
        stem_chs: channels of its first convolution; stage n has 4 * 2**n times as many.
        class_token: whether there is a class token, before the patches.
        registers: number of register tokens, before the patches.
        prefix_positions: whether prefix tokens have position embeddings.
        pre_norm: norm before the blocks, and patch embedding without bias.
        antialias: how position embeddings are resized, as for `resample_positions`.
        position_excess: how position embeddings are resized, as for `resample_positions`.
        global_pool: "token" for the class token; "avg", "max" or "avgmax" (their mean) over the patches; "" for all
            tokens.
        fc_norm: whether the last norm follows the pool; by default as in the weights.
        norm_maps: whether maps pass through the last norm.
        representation: width of a tanh layer before the classifier (`pre_logits`); 0 for none.
        norm_eps: of all norms; None for the style's default.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 16
    image_size: Sides = 224
    style: TransformerStyle = TransformerStyle()
    stem: tuple[int, ...] | None = None
    stem_chs: int = field(default=64, kw_only=True)
    mlp_ratio: float | None = field(default=None, kw_only=True)
    class_token: bool = True
    registers: int = 0
    prefix_positions: bool = True
    pre_norm: bool = False
    antialias: bool = True
    position_excess: float = 0.0
    global_pool: str = field(default="token", kw_only=True)
    fc_norm: bool = False
    norm_maps: bool = False
    representation: int = 0
    norm_eps: float | None = None
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def stated_by(self, names: Collection[str]) -> dict[str, Any]:
        """`fc_norm`, by the name of the last norm in the checkpoint; without a norm of tokens, `norm_maps` is False."""
        if "fc_norm.weight" in names:
            return {"fc_norm": True, "norm_maps": False}
        return {"fc_norm": False} if "norm.weight" in names else {}


class ViT(TokenPyramid):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the patches after each block."""

    last_linear = "head"
    pool_layers = ("pool",)
    initialize = staticmethod(init_transformer)

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(cfg)
        check(cfg, self.patch_embed.reduction)
        self.config, self.grid = cfg, position_grid(cfg, self.patch_embed.reduction)
        self.in_chans, self.num_prefix_tokens = cfg.in_chans, cfg.class_token + cfg.registers
        self.norm_maps, self.antialias, self.position_excess = cfg.norm_maps, cfg.antialias, cfg.position_excess
        self.num_positioned = self.num_prefix_tokens if cfg.prefix_positions else 0
        self.cls_token = prefix_tokens(cfg.dim, int(cfg.class_token))
        self.reg_token = prefix_tokens(cfg.dim, cfg.registers)
        positions = self.num_positioned + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, positions, cfg.dim), std=0.02))
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.norm_pre = layer_norm(cfg, cfg.pre_norm)
        ratio = cfg.style.mlp_ratio if cfg.mlp_ratio is None else cfg.mlp_ratio
        drops = {"drop": cfg.proj_drop_rate, "attn_drop": cfg.attn_drop_rate}
        style = replace(cfg.style, mlp_ratio=ratio, eps=norm_eps(cfg), **drops)
        (rates,) = rising_rates(cfg.drop_path_rate, (cfg.depth,))
        self.blocks = nn.Sequential(*(Block(cfg.dim, cfg.heads, style, rate) for rate in rates))
        self.norm = layer_norm(cfg, not cfg.fc_norm)
        self.pool = POOLS[cfg.global_pool](self.num_prefix_tokens)
        self.fc_norm = layer_norm(cfg, cfg.fc_norm)
        self.pre_logits, self.head_hidden_size = representation(cfg), cfg.representation or cfg.dim
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = classifier(self.head_hidden_size, cfg.num_classes)
        self.feature_info = Levels(
            FeatureInfo(cfg.dim, self.patch_embed.reduction, f"blocks.{i}") for i in range(cfg.depth)
        )
        self.num_features = cfg.dim
        self.initialize(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last norm (N, num_prefix_tokens + h * w, dim), prefix tokens first."""
        return self.norm(self.blocks(self._tokens(self.patch_embed(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the tokens that `forward_features` returns, or pooled features without classes."""
        x = self.head_drop(self.pre_logits(self.fc_norm(self.pool(x))))
        return x if pre_logits else self.head(x)

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        yield from ("pool", "fc_norm", "pre_logits", "head_drop", "head")
        if not self.norm_maps:
            yield "norm"
        yield from (f"blocks.{i}" for i in range(levels[-1] + 1, len(self.blocks)))

    def _block_outputs(self, tokens: Tensor, size: Sequence[int], added: int = 0) -> Iterator[Tensor]:
        del size, added
        for block in self.blocks:
            tokens = block(tokens)
            yield tokens

    def _tokens(self, patches: Tensor) -> Tensor:
        height, width = patches.shape[-2:]
        positions = resample_positions(
            self.pos_embed,
            (height, width),
            grid=self.grid,
            prefix=self.num_positioned,
            antialias=self.antialias,
            excess=self.position_excess,
        )
        prefix = [
            token.expand(patches.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        tokens = patches.flatten(2).transpose(1, 2)
        if self.num_positioned:
            tokens = torch.cat([*prefix, tokens], dim=1) + positions
        else:
            tokens = torch.cat([*prefix, tokens + positions], dim=1)
        return self.norm_pre(self.pos_drop(tokens))


class PatchEmbed(nn.Module):
    """Patch embedding, with padding: (N, in_chans, H, W) to (N, dim, H / reduction, W / reduction), rounded up."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        no_stem = nn.Identity(), cfg.in_chans, 1
        self.backbone, chs, stride = no_stem if cfg.stem is None else hybrid_stem(cfg.in_chans, cfg.stem, cfg.stem_chs)
        self.patch, self.reduction = cfg.patch, stride * cfg.patch
        self.proj = nn.Conv2d(chs, cfg.dim, cfg.patch, cfg.patch, bias=not cfg.pre_norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        below, right = (-x.shape[axis] % self.patch for axis in (-2, -1))
        # padding by 0 would copy; under torch.export or a tracer a symbolic side is not an int
        whole = isinstance(below, int) and isinstance(right, int) and below == right == 0
        return self.proj(x if whole else F.pad(x, (0, right, 0, below)))


class TokenPool(nn.Module):
    """Pool a range of the tokens to one vector: (N, L, dim) to (N, dim)."""

    def __init__(self, tokens: slice, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.tokens, self.reduce = tokens, reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x[:, self.tokens])


def mean(tokens: Tensor) -> Tensor:
    return tokens.mean(1)


def largest(tokens: Tensor) -> Tensor:
    return tokens.amax(1)


def mean_and_largest(tokens: Tensor) -> Tensor:
    return 0.5 * (tokens.mean(1) + tokens.amax(1))


# Functions from the number of prefix tokens to a pool of (N, L, dim).
POOLS: dict[str, Callable[[int], nn.Module]] = {
    "token": lambda _: TokenPool(slice(0, 1), mean),
    "avg": lambda prefix: TokenPool(slice(prefix, None), mean),
    "max": lambda prefix: TokenPool(slice(prefix, None), largest),
    "avgmax": lambda prefix: TokenPool(slice(prefix, None), mean_and_largest),
    "": lambda _: nn.Identity(),
}


def check(cfg: ViTConfig, reduction: int) -> None:
    """ArgumentError that lists all conflicts in `cfg`, whose patches cover `reduction` pixels."""
    if found := problems_of(cfg, reduction, [*POOLS]):
        raise ArgumentError("; ".join(found))


def problems_of(cfg: ViTConfig, reduction: int, pools: Sequence[str]) -> list[str]:
    """All conflicts in `cfg`, whose patches cover `reduction` pixels, of a model with these pools."""
    problems = {
        f"global_pool={cfg.global_pool!r}: choose one of {pools}": cfg.global_pool not in pools,
        "global_pool='token' needs class_token=True; without it choose 'avg', 'max', 'avgmax' or ''": (
            cfg.global_pool == "token" and not cfg.class_token
        ),
        f"dim={cfg.dim} is not a multiple of heads={cfg.heads}": cfg.dim % cfg.heads > 0,
        f"image_size={cfg.image_size} is smaller than a patch ({reduction} pixels)": min(image_sides(cfg.image_size))
        < reduction,
        "norm_maps=True has no norm to apply: this variant normalizes after its pool (fc_norm=True)": cfg.norm_maps
        and cfg.fc_norm,
    }
    return [problem for problem, holds in problems.items() if holds]


def position_grid(cfg: ViTConfig, reduction: int) -> tuple[int, int]:
    """Rows and columns of the position embeddings, for patches that cover `reduction` pixels."""
    height, width = image_sides(cfg.image_size)
    return height // reduction, width // reduction


def prefix_tokens(dim: int, count: int) -> nn.Parameter | None:
    """Parameter (1, count, dim) with values near zero; None for a count of 0."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, dim), std=1e-6)) if count else None


def layer_norm(cfg: ViTConfig, wanted: bool) -> nn.Module:
    return nn.LayerNorm(cfg.dim, norm_eps(cfg)) if wanted else nn.Identity()


def norm_eps(cfg: ViTConfig) -> float:
    return cfg.style.eps if cfg.norm_eps is None else cfg.norm_eps


def representation(cfg: ViTConfig) -> nn.Module:
    """The layer (N, dim) to (N, representation), or the identity."""
    if not cfg.representation:
        return nn.Identity()
    return nn.Sequential(OrderedDict(fc=nn.Linear(cfg.dim, cfg.representation), act=nn.Tanh()))
