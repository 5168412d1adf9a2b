"""The named variants of ViT, with their published weights and preprocessing."""

from dataclasses import replace

from torch import nn

from ..preprocessing import CLIP, CLIP_MEAN, CLIP_STD, HALF, IMAGENET, DataConfig
from ..registry import Variant, register
from .layers.transformer import TANH_GELU, GatedMlp, TransformerStyle
from .vit import ViT, ViTConfig

TINY, SMALL, MEDIUM = (192, 12, 3), (384, 12, 6), (512, 12, 8)
BASE, LARGE, HUGE, GIANT = (768, 12, 12), (1024, 24, 16), (1280, 32, 16), (1536, 40, 24)
SO400M = (1152, 27, 16)
Size = tuple[int, int, int]

SIGLIP_STYLE = TransformerStyle(act=TANH_GELU)
CLIP_STYLE = TransformerStyle(eps=1e-5)
DINO_STYLE = TransformerStyle(layer_scale=1e-5)
GIANT_STYLE = TransformerStyle(2.66667 * 2, GatedMlp, nn.SiLU, layer_scale=1e-5)

R26, R50 = (2, 2, 2, 2), (3, 4, 6, 3)


def deit3(size: Size, patch: int = 16, image: int = 224) -> ViTConfig:
    return ViTConfig(*size, patch, image, TransformerStyle(layer_scale=1e-6), prefix_positions=False)


def dinov2(size: Size, registers: int = 0, style: TransformerStyle = DINO_STYLE) -> ViTConfig:
    """Maps pass through the last norm, as in the evaluations of the authors."""
    tokens = ViTConfig(*size, 14, 518, style, registers=registers, prefix_positions=not registers, num_classes=0)
    return replace(tokens, norm_maps=True)


def clip(size: Size, patch: int, image: int = 224, num_classes: int = 1000) -> ViTConfig:
    return ViTConfig(*size, patch, image, CLIP_STYLE, pre_norm=True, num_classes=num_classes)


def siglip(size: Size, patch: int, image: int, tanh: bool = False, mlp_ratio: float | None = None) -> ViTConfig:
    """SigLIP (https://arxiv.org/abs/2303.15343) without its attention pool. tanh: the approximation of GELU."""
    style = SIGLIP_STYLE if tanh else TransformerStyle()
    tokens = ViTConfig(*size, patch, image, style, class_token=False, global_pool="avg", num_classes=0)
    return replace(tokens, mlp_ratio=mlp_ratio)


def hybrid(size: Size, stem: tuple[int, ...], image: int = 224, patch: int = 1, num_classes: int = 1000) -> ViTConfig:
    return ViTConfig(*size, patch, image, stem=stem, num_classes=num_classes)


def gap(size: Size, image: int, num_classes: int = 1000) -> ViTConfig:
    """A variant without class token: the classifier uses the mean of the patches."""
    style = TransformerStyle(qkv_bias=False, layer_scale=1e-6)
    return ViTConfig(*size, 16, image, style, class_token=False, global_pool="avg", num_classes=num_classes)


def reg_gap(size: Size, registers: int, image: int = 256, mlp_ratio: float = 4.0) -> ViTConfig:
    """A variant without class token, with registers and the norm after the pool."""
    style = TransformerStyle(mlp_ratio, layer_scale=1e-5)
    prefix = ViTConfig(*size, 16, image, style, class_token=False, registers=registers, prefix_positions=False)
    return replace(prefix, global_pool="avg", fc_norm=True)


def data(size: int = 224, crop: float = 0.9) -> DataConfig:
    return DataConfig((size, size), crop=crop)


def half(size: int = 224, crop: float = 0.9) -> DataConfig:
    return DataConfig((size, size), HALF, HALF, crop=crop)


def clip_data(size: int = 224, crop: float = 1.0) -> DataConfig:
    return DataConfig((size, size), CLIP_MEAN, CLIP_STD, crop=crop)


def squashed(config: DataConfig) -> DataConfig:
    return replace(config, crop_mode="squash")


AUGREG = "augreg_in21k_ft_in1k"
BASE_16 = (
    f"augreg2_in21k_ft_in1k augreg_in1k augreg_in21k {AUGREG} bamboo dino mae orig_in21k orig_in21k_ft_in1k sam_in1k"
)
FB = "fb_in1k fb_in22k_ft_in1k"
LAION = "laion2b_ft_in12k_in1k"
OPENAI = "openai openai_ft_in1k openai_ft_in12k openai_ft_in12k_in1k"
LAION_TAGS = "laion2b laion2b_ft_in1k laion2b_ft_in12k"
WEBLI = "v2_webli webli"
SBB2 = "sbb2_e200_in12k_ft_in1k"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    **dict.fromkeys(("dino", "mae"), IMAGENET),
    "fb_in22k_ft_in1k": {"crop": 1.0},
    **dict.fromkeys(
        ("bamboo", "apple_mclip2_dfndr2b", "datacompxl", "dfn2b", "dfn2b_s39b", "laion400m_e32"), CLIP | {"crop": 1.0}
    ),
    **dict.fromkeys(("metaclip_2pt5b", "metaclip_400m"), CLIP | {"crop": 1.0}),
    **dict.fromkeys(OPENAI.split(), CLIP),
    "vit_base_patch32_clip_224.laion400m_e32": {},
    **{f"vit_base_patch16_clip_224.{tag}": {"crop": 1.0} for tag in ("laion2b", "laion2b_ft_in1k")},
    **{
        f"vit_base_patch16_clip_224.{tag}": {"crop": 0.9}
        for tag in ("laion2b_ft_in12k", "openai", "openai_ft_in1k", "openai_ft_in12k")
    },
    **{
        f"vit_base_patch{side}_clip_384.openai_ft_in12k_in1k": {"crop": 0.95, "crop_mode": "squash"}
        for side in (16, 32)
    },
    "vit_large_patch14_clip_336.openai": CLIP | {"crop_mode": "center"},
    "vit_huge_patch14_clip_378.metaclip2_worldwide": {"crop_mode": "squash"},
}
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
        squashed(clip_data(384)),
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
        squashed(half(336, 1.0)),
    ),
    (
        "vit_huge_patch14_clip_224",
        clip(HUGE, 14),
        f"{LAION} dfn5b {LAION_TAGS} metaclip2_worldwide metaclip_2pt5b metaclip_altogether",
        clip_data(),
    ),
    ("vit_huge_patch14_clip_336", clip(HUGE, 14, 336), LAION, squashed(clip_data(336))),
    ("vit_huge_patch14_clip_378", clip(HUGE, 14, 378, 1024), "dfn5b metaclip2_worldwide", clip_data(378)),
    ("vit_base_patch32_siglip_gap_256", siglip(BASE, 32, 256, tanh=True), "v2_webli", half(256)),
    ("vit_base_patch16_siglip_gap_224", siglip(BASE, 16, 224), WEBLI, half()),
    ("vit_base_patch16_siglip_gap_256", siglip(BASE, 16, 256), f"{WEBLI} webli_i18n", half(256)),
    ("vit_base_patch16_siglip_gap_384", siglip(BASE, 16, 384), WEBLI, half(384)),
    ("vit_base_patch16_siglip_gap_512", siglip(BASE, 16, 512), WEBLI, half(512)),
    ("vit_large_patch16_siglip_gap_256", siglip(LARGE, 16, 256), WEBLI, half(256)),
    ("vit_large_patch16_siglip_gap_384", siglip(LARGE, 16, 384), WEBLI, half(384)),
    ("vit_large_patch16_siglip_gap_512", siglip(LARGE, 16, 512, tanh=True), "v2_webli", half(512)),
    ("vit_so400m_patch16_siglip_gap_512", siglip(SO400M, 16, 512, True, 3.7362), "v2_webli", half(512)),
    ("vit_medium_patch16_gap_240", gap(MEDIUM, 240, 11821), "sw_in12k", half(240, 0.95)),
    ("vit_medium_patch16_gap_256", gap(MEDIUM, 256), "sw_in12k_ft_in1k", half(256, 0.95)),
    ("vit_medium_patch16_gap_384", gap(MEDIUM, 384), "sw_in12k_ft_in1k", squashed(half(384, 0.95))),
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

register({name: Variant(ViT, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS})
