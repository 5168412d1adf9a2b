"""ViT, https://arxiv.org/abs/2010.11929, with DeiT (https://arxiv.org/abs/2012.12877), DeiT III, DINOv2 and CLIP's.

Images of any size: sides are zero-padded on the right and at the bottom to whole patches, and the learnt grid of
positions is interpolated to theirs. With `antialias=False` the interpolation is that of BLIP
(https://arxiv.org/abs/2201.12086), whose image encoder is vit_base_patch16_224 with num_classes=0. Reference: timm with
dynamic_img_size and dynamic_img_pad.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import BackboneConfig, Pyramid, classifier
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .layers.drop_path import rising_rates
from .layers.hybrid import hybrid_stem
from .layers.position import resample_positions
from .layers.transformer import Block, TransformerStyle, init_transformer


@dataclass(frozen=True, slots=True)
class ViTConfig(BackboneConfig):
    """dim: channels of a token. patch, image_size: pixels along a side; image_size only sets the grid of positions.

    stem: blocks per stage of a ResNet before the patches, which are then counted in cells of its map; None for none.
    class_token, registers: the prefix tokens, which stand before the patches. prefix_positions: whether these have
    positions too. pre_norm: a norm before the blocks, and patches without bias. antialias, position_excess: how
    positions are resized, see `resample_positions`.
    global_pool: "token" for the class token, or "avg" over the patches. fc_norm: the last norm comes after the pool.
    norm_maps: maps, too, go through the last norm. representation: width of a tanh layer before the classifier
    (`pre_logits`), 0 for none. norm_eps: of all norms; None is as the style has it.
    """

    dim: int
    depth: int
    heads: int
    patch: int = 16
    image_size: int = 224
    style: TransformerStyle = TransformerStyle()
    stem: tuple[int, ...] | None = None
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


class ViT(Pyramid):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the patches after each block."""

    last_linear = "head"
    initialise = staticmethod(init_transformer)

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(cfg)
        check(cfg, self.patch_embed.reduction)
        self.in_chans, self.num_prefix_tokens = cfg.in_chans, cfg.class_token + cfg.registers
        self.norm_maps, self.antialias, self.position_excess = cfg.norm_maps, cfg.antialias, cfg.position_excess
        self.num_positioned = self.num_prefix_tokens if cfg.prefix_positions else 0
        self.cls_token = prefix_tokens(cfg.dim, int(cfg.class_token))
        self.reg_token = prefix_tokens(cfg.dim, cfg.registers)
        positions = self.num_positioned + (cfg.image_size // self.patch_embed.reduction) ** 2
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, positions, cfg.dim), std=0.02))
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.norm_pre = layer_norm(cfg, cfg.pre_norm)
        style = replace(cfg.style, eps=norm_eps(cfg), drop=cfg.proj_drop_rate, attn_drop=cfg.attn_drop_rate)
        (rates,) = rising_rates(cfg.drop_path_rate, (cfg.depth,))
        self.blocks = nn.Sequential(*(Block(cfg.dim, cfg.heads, style, rate) for rate in rates))
        self.norm = layer_norm(cfg, not cfg.fc_norm)
        self.pool = TokenMean(slice(0, 1) if cfg.global_pool == "token" else slice(self.num_prefix_tokens, None))
        self.fc_norm = layer_norm(cfg, cfg.fc_norm)
        self.pre_logits, self.head_hidden_size = representation(cfg), cfg.representation or cfg.dim
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head = classifier(self.head_hidden_size, cfg.num_classes)
        self.feature_info = Levels(
            FeatureInfo(cfg.dim, self.patch_embed.reduction, f"blocks.{i}") for i in range(cfg.depth)
        )
        self.num_features = cfg.dim
        self.initialise(self)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """As in Pyramid. The class token comes before the registers; `norm_maps` normalises the prefix tokens, too."""
        patches = self.patch_embed(x)
        tokens, taken = self._tokens(patches), {}
        for level, block in enumerate(self.blocks):
            tokens = block(tokens)
            if level in levels:
                taken[level] = self.norm(tokens) if self.norm_maps else tokens
            if level == max(levels):
                break
        return [self._split(taken[level], patches) for level in levels]

    def forward_features(self, x: Tensor) -> Tensor:
        """All tokens after the last norm (N, num_prefix_tokens + h * w, dim), prefix tokens first."""
        return self.norm(self.blocks(self._tokens(self.patch_embed(x))))

    def forward_head(self, x: Tensor) -> Tensor:
        """Logits of the tokens that `forward_features` returns, or pooled features if there are no classes."""
        return self.head(self.head_drop(self.pre_logits(self.fc_norm(self.pool(x)))))

    def unused(self, levels: Sequence[int]) -> Iterator[str]:
        yield from ("pool", "fc_norm", "pre_logits", "head_drop", "head")
        if not self.norm_maps:
            yield "norm"
        yield from (f"blocks.{i}" for i in range(levels[-1] + 1, len(self.blocks)))

    def _tokens(self, patches: Tensor) -> Tensor:
        """What enters the blocks: (N, dim, h, w) to (N, num_prefix_tokens + h * w, dim)."""
        height, width = patches.shape[-2:]
        positions = resample_positions(
            self.pos_embed,
            (height, width),
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

    def _split(self, tokens: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens, and the others as a map in the memory format of `patches`."""
        prefix, rest = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        layout = torch.contiguous_format if patches.is_contiguous() else torch.channels_last
        return prefix, rest.transpose(1, 2).unflatten(2, patches.shape[-2:]).contiguous(memory_format=layout)


class PatchEmbed(nn.Module):
    """A vector per patch, partly covered or whole: (N, in_chans, H, W) to (N, dim, H / reduction, W / reduction)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        no_stem = nn.Identity(), cfg.in_chans, 1
        self.backbone, chs, stride = no_stem if cfg.stem is None else hybrid_stem(cfg.in_chans, cfg.stem)
        self.patch, self.reduction = cfg.patch, stride * cfg.patch
        self.proj = nn.Conv2d(chs, cfg.dim, cfg.patch, cfg.patch, bias=not cfg.pre_norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone(x)
        below, right = (-side % self.patch for side in x.shape[-2:])
        return self.proj(F.pad(x, (0, right, 0, below)))


class TokenMean(nn.Module):
    """The mean of the tokens in a range: (N, L, dim) to (N, dim)."""

    def __init__(self, tokens: slice) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.tokens].mean(1)


POOLS = ("token", "avg")


def check(cfg: ViTConfig, reduction: int) -> None:
    """Raise ArgumentError that lists what does not fit together in `cfg`, whose patches cover `reduction` pixels."""
    problems = {
        f"global_pool={cfg.global_pool!r}: choose one of {POOLS}": cfg.global_pool not in POOLS,
        "global_pool='token' needs class_token=True": cfg.global_pool == "token" and not cfg.class_token,
        f"dim={cfg.dim} is no multiple of heads={cfg.heads}": cfg.dim % cfg.heads > 0,
        f"image_size={cfg.image_size} is smaller than a patch ({reduction} pixels)": cfg.image_size < reduction,
        "norm_maps=True has no norm to apply: this variant normalises after its pool (fc_norm=True)": cfg.norm_maps
        and cfg.fc_norm,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ArgumentError("; ".join(found))


def prefix_tokens(dim: int, count: int) -> nn.Parameter | None:
    """(1, count, dim), nearly zero; None if there are none."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, count, dim), std=1e-6)) if count else None


def layer_norm(cfg: ViTConfig, wanted: bool) -> nn.Module:
    return nn.LayerNorm(cfg.dim, norm_eps(cfg)) if wanted else nn.Identity()


def norm_eps(cfg: ViTConfig) -> float:
    return cfg.style.eps if cfg.norm_eps is None else cfg.norm_eps


def representation(cfg: ViTConfig) -> nn.Module:
    """(N, dim) to (N, representation), or the identity."""
    if not cfg.representation:
        return nn.Identity()
    return nn.Sequential(OrderedDict(fc=nn.Linear(cfg.dim, cfg.representation), act=nn.Tanh()))
