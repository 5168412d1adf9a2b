"""ViT, https://arxiv.org/abs/2010.11929, with DeiT (https://arxiv.org/abs/2012.12877), DeiT III, DINOv2 and CLIP's.

Images of any size: sides are zero-padded on the right and at the bottom to whole patches, and the learnt grid of
positions is interpolated to theirs. With `antialias=False` the interpolation is that of BLIP
(https://arxiv.org/abs/2201.12086), whose image encoder is vit_base_patch16_224 with num_classes=0. Reference: timm with
dynamic_img_size and dynamic_img_pad.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Pyramid, classifier
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig
from ..registry import Variant, register
from .layers.drop_path import rising_rates
from .layers.hybrid import hybrid_stem
from .layers.position import resample_positions
from .layers.transformer import Block, GatedMlp, TransformerStyle, init_transformer


@dataclass(frozen=True, slots=True)
class ViTConfig:
    """dim: channels of a token. patch, image_size: pixels along a side; image_size only sets the grid of positions.

    stem: blocks per stage of a ResNet before the patches, which are then counted in cells of its map; None for none.
    class_token, registers: the prefix tokens, which stand before the patches. prefix_positions: whether these have
    positions too. pre_norm: a norm before the blocks, and patches without bias. antialias: of the resized positions.
    global_pool: "token" for the class token, or "avg" over the patches. fc_norm: the last norm comes after the pool.
    norm_maps: maps, too, go through the last norm. representation: width of a tanh layer before the classifier
    (`pre_logits`), 0 for none.
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
    global_pool: str = "token"
    fc_norm: bool = False
    norm_maps: bool = False
    representation: int = 0
    in_chans: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0


class ViT(Pyramid):
    """Images (N, in_chans, H, W) to logits (N, num_classes). Levels: the patches after each block."""

    last_linear = "head"

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(cfg)
        check(cfg, self.patch_embed.reduction)
        self.in_chans, self.num_prefix_tokens = cfg.in_chans, cfg.class_token + cfg.registers
        self.norm_maps, self.antialias = cfg.norm_maps, cfg.antialias
        self.num_positioned = self.num_prefix_tokens if cfg.prefix_positions else 0
        self.cls_token = prefix_tokens(cfg.dim, int(cfg.class_token))
        self.reg_token = prefix_tokens(cfg.dim, cfg.registers)
        positions = self.num_positioned + (cfg.image_size // self.patch_embed.reduction) ** 2
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, positions, cfg.dim), std=0.02))
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        self.norm_pre = layer_norm(cfg, cfg.pre_norm)
        style = replace(cfg.style, drop=cfg.proj_drop_rate, attn_drop=cfg.attn_drop_rate)
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
        init_transformer(self)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """(prefix tokens (N, num_prefix_tokens, dim), map (N, dim, H / reduction, W / reduction)) of each of `levels`.

        The class token comes before the registers. With `norm_maps` the prefix tokens, too, have been normalised.
        """
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
            self.pos_embed, (height, width), prefix=self.num_positioned, antialias=self.antialias
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
    return nn.LayerNorm(cfg.dim, cfg.style.eps) if wanted else nn.Identity()


def representation(cfg: ViTConfig) -> nn.Module:
    """(N, dim) to (N, representation), or the identity."""
    if not cfg.representation:
        return nn.Identity()
    return nn.Sequential(OrderedDict(fc=nn.Linear(cfg.dim, cfg.representation), act=nn.Tanh()))


TINY, SMALL, MEDIUM = (192, 12, 3), (384, 12, 6), (512, 12, 8)
BASE, LARGE, HUGE, GIANT = (768, 12, 12), (1024, 24, 16), (1280, 32, 16), (1536, 40, 24)
Size = tuple[int, int, int]

CLIP_STYLE = TransformerStyle(eps=1e-5)
DINO_STYLE = TransformerStyle(layer_scale=1e-5)
GIANT_STYLE = TransformerStyle(2.66667 * 2, GatedMlp, nn.SiLU, layer_scale=1e-5)

R26, R50 = (2, 2, 2, 2), (3, 4, 6, 3)

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def deit3(size: Size, patch: int = 16, image: int = 224) -> ViTConfig:
    return ViTConfig(*size, patch, image, TransformerStyle(layer_scale=1e-6), prefix_positions=False)


def dinov2(size: Size, registers: int = 0, style: TransformerStyle = DINO_STYLE) -> ViTConfig:
    return ViTConfig(*size, 14, 518, style, registers=registers, prefix_positions=not registers, num_classes=0)


def clip(size: Size, patch: int, image: int = 224, num_classes: int = 1000) -> ViTConfig:
    return ViTConfig(*size, patch, image, CLIP_STYLE, pre_norm=True, num_classes=num_classes)


def hybrid(size: Size, stem: tuple[int, ...], image: int = 224, patch: int = 1, num_classes: int = 1000) -> ViTConfig:
    return ViTConfig(*size, patch, image, stem=stem, num_classes=num_classes)


def gap(size: Size, image: int, num_classes: int = 1000) -> ViTConfig:
    """Without class token: the classifier reads the mean of the patches."""
    style = TransformerStyle(qkv_bias=False, layer_scale=1e-6)
    return ViTConfig(*size, 16, image, style, class_token=False, global_pool="avg", num_classes=num_classes)


def reg_gap(size: Size, registers: int, image: int = 256, mlp_ratio: float = 4.0) -> ViTConfig:
    """The same with registers, and the norm after the pool."""
    style = TransformerStyle(mlp_ratio, layer_scale=1e-5)
    prefix = ViTConfig(*size, 16, image, style, class_token=False, registers=registers, prefix_positions=False)
    return replace(prefix, global_pool="avg", fc_norm=True)


def data(size: int = 224, crop: float = 0.9) -> DataConfig:
    return DataConfig((size, size), crop=crop)


def half(size: int = 224, crop: float = 0.9) -> DataConfig:
    return DataConfig((size, size), HALF, HALF, crop=crop)


def clip_data(size: int = 224, crop: float = 1.0) -> DataConfig:
    return DataConfig((size, size), CLIP_MEAN, CLIP_STD, crop=crop)


AUGREG = "augreg_in21k_ft_in1k"
BASE_16 = (
    f"augreg2_in21k_ft_in1k augreg_in1k augreg_in21k {AUGREG} bamboo dino mae orig_in21k orig_in21k_ft_in1k sam_in1k"
)
FB = "fb_in1k fb_in22k_ft_in1k"
LAION = "laion2b_ft_in12k_in1k"
OPENAI = "openai openai_ft_in1k openai_ft_in12k openai_ft_in12k_in1k"
LAION_TAGS = "laion2b laion2b_ft_in1k laion2b_ft_in12k"
SBB2 = "sbb2_e200_in12k_ft_in1k"
VARIANTS = [
    ("vit_tiny_patch16_224", ViTConfig(*TINY), f"{AUGREG} augreg_in21k", half()),
    ("vit_tiny_patch16_384", ViTConfig(*TINY, 16, 384), AUGREG, half(384, 1.0)),
    ("vit_small_patch32_224", ViTConfig(*SMALL, 32), f"{AUGREG} augreg_in21k", half()),
    ("vit_small_patch32_384", ViTConfig(*SMALL, 32, 384), AUGREG, half(384, 1.0)),
    ("vit_small_patch16_224", ViTConfig(*SMALL), f"{AUGREG} augreg_in1k augreg_in21k dino", half()),
    ("vit_small_patch16_384", ViTConfig(*SMALL, 16, 384), f"{AUGREG} augreg_in1k", half(384, 1.0)),
    ("vit_small_patch8_224", ViTConfig(*SMALL, 8, num_classes=0), "dino", data()),
    ("vit_base_patch32_224", ViTConfig(*BASE, 32), f"{AUGREG} augreg_in1k augreg_in21k orig_in21k sam_in1k", half()),
    ("vit_base_patch32_384", ViTConfig(*BASE, 32, 384), f"{AUGREG} augreg_in1k", half(384, 1.0)),
    ("vit_base_patch16_224", ViTConfig(*BASE), BASE_16, half()),
    ("vit_base_patch16_384", ViTConfig(*BASE, 16, 384), f"{AUGREG} augreg_in1k orig_in21k_ft_in1k", half(384, 1.0)),
    ("vit_base_patch8_224", ViTConfig(*BASE, 8), f"augreg2_in21k_ft_in1k augreg_in21k {AUGREG} dino", half()),
    ("vit_large_patch32_224", ViTConfig(*LARGE, 32, num_classes=0), "orig_in21k", half()),
    ("vit_large_patch32_384", ViTConfig(*LARGE, 32, 384), "orig_in21k_ft_in1k", half(384, 1.0)),
    ("vit_large_patch16_224", ViTConfig(*LARGE), f"{AUGREG} augreg_in21k mae orig_in21k", half()),
    ("vit_large_patch16_384", ViTConfig(*LARGE, 16, 384), AUGREG, half(384, 1.0)),
    ("vit_large_patch14_224", ViTConfig(*LARGE, 14), "", half()),
    ("vit_huge_patch14_224", ViTConfig(*HUGE, 14, num_classes=0), "orig_in21k mae", half()),
    ("vit_tiny_r_s16_p8_224", hybrid(TINY, (), patch=8), f"{AUGREG} augreg_in21k", half()),
    ("vit_tiny_r_s16_p8_384", hybrid(TINY, (), 384, 8), AUGREG, half(384, 1.0)),
    ("vit_small_r26_s32_224", hybrid(SMALL, R26), f"{AUGREG} augreg_in21k", half()),
    ("vit_small_r26_s32_384", hybrid(SMALL, R26, 384), AUGREG, half(384, 1.0)),
    ("vit_base_r26_s32_224", hybrid(BASE, R26), "", half()),
    ("vit_base_r50_s16_224", hybrid(BASE, (3, 4, 9), num_classes=0), "orig_in21k", half()),
    ("vit_base_r50_s16_384", hybrid(BASE, (3, 4, 9), 384), "orig_in21k_ft_in1k", half(384, 1.0)),
    ("vit_large_r50_s32_224", hybrid(LARGE, R50), f"{AUGREG} augreg_in21k", half()),
    ("vit_large_r50_s32_384", hybrid(LARGE, R50, 384), AUGREG, half(384, 1.0)),
    ("deit_tiny_patch16_224", ViTConfig(*TINY), "fb_in1k", data()),
    ("deit_small_patch16_224", ViTConfig(*SMALL), "fb_in1k", data()),
    ("deit_base_patch16_224", ViTConfig(*BASE), "fb_in1k", data()),
    ("deit_base_patch16_384", ViTConfig(*BASE, 16, 384), "fb_in1k", data(384, 1.0)),
    ("deit3_small_patch16_224", deit3(SMALL), FB, data()),
    ("deit3_small_patch16_384", deit3(SMALL, 16, 384), FB, data(384, 1.0)),
    ("deit3_medium_patch16_224", deit3(MEDIUM), FB, data()),
    ("deit3_base_patch16_224", deit3(BASE), FB, data()),
    ("deit3_base_patch16_384", deit3(BASE, 16, 384), FB, data(384, 1.0)),
    ("deit3_large_patch16_224", deit3(LARGE), FB, data()),
    ("deit3_large_patch16_384", deit3(LARGE, 16, 384), FB, data(384, 1.0)),
    ("deit3_huge_patch14_224", deit3(HUGE, 14), FB, data()),
    ("vit_small_patch14_dinov2", dinov2(SMALL), "lvd142m", data(518, 1.0)),
    ("vit_base_patch14_dinov2", dinov2(BASE), "lvd142m", data(518, 1.0)),
    ("vit_large_patch14_dinov2", dinov2(LARGE), "lvd142m", data(518, 1.0)),
    ("vit_giant_patch14_dinov2", dinov2(GIANT, 0, GIANT_STYLE), "lvd142m", data(518, 1.0)),
    ("vit_small_patch14_reg4_dinov2", dinov2(SMALL, 4), "lvd142m", data(518, 1.0)),
    ("vit_base_patch14_reg4_dinov2", dinov2(BASE, 4), "lvd142m", data(518, 1.0)),
    ("vit_large_patch14_reg4_dinov2", dinov2(LARGE, 4), "lvd142m", data(518, 1.0)),
    ("vit_giant_patch14_reg4_dinov2", dinov2(GIANT, 4, GIANT_STYLE), "lvd142m", data(518, 1.0)),
    (
        "vit_base_patch32_clip_224",
        clip(BASE, 32),
        f"{LAION} datacompxl laion2b laion2b_ft_in1k laion400m_e32 metaclip_2pt5b metaclip_400m openai openai_ft_in1k",
        clip_data(crop=0.9),
    ),
    ("vit_base_patch32_clip_256", clip(BASE, 32, 256, 512), "datacompxl", clip_data(256)),
    ("vit_base_patch32_clip_384", clip(BASE, 32, 384), f"{LAION} openai_ft_in12k_in1k", clip_data(384)),
    ("vit_base_patch32_clip_448", clip(BASE, 32, 448), LAION, clip_data(448)),
    (
        "vit_base_patch16_clip_224",
        clip(BASE, 16),
        f"{LAION} datacompxl dfn2b {LAION_TAGS} laion400m_e32 metaclip_2pt5b metaclip_400m {OPENAI}",
        clip_data(crop=0.95),
    ),
    (
        "vit_base_patch16_clip_384",
        clip(BASE, 16, 384),
        f"{LAION} laion2b_ft_in1k openai_ft_in1k openai_ft_in12k_in1k",
        clip_data(384),
    ),
    (
        "vit_large_patch14_clip_224",
        clip(LARGE, 14),
        f"{LAION} apple_mclip2_dfndr2b datacompxl dfn2b dfn2b_s39b {LAION_TAGS} laion400m_e32 metaclip_2pt5b "
        f"metaclip_400m {OPENAI}",
        half(crop=1.0),
    ),
    (
        "vit_large_patch14_clip_336",
        clip(LARGE, 14, 336),
        f"{LAION} laion2b_ft_in1k openai openai_ft_in12k_in1k",
        half(336, 1.0),
    ),
    (
        "vit_huge_patch14_clip_224",
        clip(HUGE, 14),
        f"{LAION} dfn5b {LAION_TAGS} metaclip2_worldwide metaclip_2pt5b metaclip_altogether",
        clip_data(),
    ),
    ("vit_huge_patch14_clip_336", clip(HUGE, 14, 336), LAION, clip_data(336)),
    ("vit_huge_patch14_clip_378", clip(HUGE, 14, 378, 1024), "dfn5b metaclip2_worldwide", clip_data(378)),
    ("vit_medium_patch16_gap_240", gap(MEDIUM, 240, 11821), "sw_in12k", half(240, 0.95)),
    ("vit_medium_patch16_gap_256", gap(MEDIUM, 256), "sw_in12k_ft_in1k", half(256, 0.95)),
    ("vit_medium_patch16_gap_384", gap(MEDIUM, 384), "sw_in12k_ft_in1k", half(384, 0.95)),
    ("vit_wee_patch16_reg1_gap_256", reg_gap((256, 14, 4), 1, mlp_ratio=5), "sbb_in1k", half(256, 0.95)),
    (
        "vit_little_patch16_reg1_gap_256",
        reg_gap((320, 14, 5), 1, mlp_ratio=5.6),
        "sbb_in12k_ft_in1k sbb_in12k",
        half(256, 0.95),
    ),
    ("vit_little_patch16_reg4_gap_256", reg_gap((320, 14, 5), 4, mlp_ratio=5.6), "sbb_in1k", half(256, 0.95)),
    ("vit_medium_patch16_reg1_gap_256", reg_gap(MEDIUM, 1), "sbb_in1k", half(256, 0.95)),
    (
        "vit_medium_patch16_reg4_gap_256",
        reg_gap(MEDIUM, 4),
        "sbb_in12k_ft_in1k sbb_in1k sbb_in12k",
        half(256, 0.95),
    ),
    (
        "vit_mediumd_patch16_reg4_gap_256",
        reg_gap((512, 20, 8), 4),
        f"{SBB2} sbb2_e200_in12k sbb_in12k sbb_in12k_ft_in1k",
        half(256, 0.95),
    ),
    ("vit_mediumd_patch16_reg4_gap_384", reg_gap((512, 20, 8), 4, 384), SBB2, half(384, 1.0)),
    ("vit_betwixt_patch16_reg1_gap_256", reg_gap((640, 12, 10), 1), "sbb_in1k", half(256, 0.95)),
    (
        "vit_betwixt_patch16_reg4_gap_256",
        reg_gap((640, 12, 10), 4),
        f"{SBB2} sbb2_e200_in12k sbb_in1k sbb_in12k sbb_in12k_ft_in1k",
        half(256, 0.95),
    ),
    ("vit_betwixt_patch16_reg4_gap_384", reg_gap((640, 12, 10), 4, 384), SBB2, half(384, 1.0)),
]

register({name: Variant(ViT, config, tuple(tags.split()), images) for name, config, tags, images in VARIANTS})
