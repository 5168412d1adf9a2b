"""The named variants of RotaryViT, with their published weights and preprocessing."""

from dataclasses import replace

from torch import nn

from ..preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET, DataConfig
from ..registry import Variant, register
from .layers.rotary import RopeStyle
from .layers.rotary_block import KeylessBiasAttention, RotaryStyle, SplitAttention, SwiGlu
from .layers.transformer import GatedMlp
from .vit_rotary import RotaryViT, RotaryViTConfig
from .vit_variants import BASE, LARGE, MEDIUM, SMALL, TINY, Size, data, half, squashed

GIANT, HUGE, GIGANTIC, SEVEN_B = (1408, 40, 16), (1280, 32, 20), (1536, 50, 16), (4096, 40, 32)

EVA02_ROPE = RopeStyle(reference=16)
EVA = RotaryStyle(6144 / 1408, attention=KeylessBiasAttention)
PACKED = RotaryStyle(2 * 8 / 3, GatedMlp, nn.SiLU, attention=KeylessBiasAttention, rope=EVA02_ROPE)
NORMED = RotaryStyle(8 / 3, SwiGlu, nn.SiLU, attention=SplitAttention, rope=EVA02_ROPE, mlp_norm=True)
NORMED_TWICE = replace(NORMED, attn_norm=True)
SBB = RotaryStyle(layer_scale=1e-5, attention=KeylessBiasAttention, rope=EVA02_ROPE)
SBB_WITHOUT_BIAS = RotaryStyle(qkv_bias=False, layer_scale=1e-5, rope=EVA02_ROPE)
AXIAL = RotaryStyle(layer_scale=1e-5, rope=RopeStyle(100.0, columns_first=True))
MIXED = RotaryStyle(layer_scale=1e-5, rope=RopeStyle(10.0, columns_first=True, learned=True))
DINOV3_ROPE = RopeStyle(100.0, centered=True, halves=True)
DINOV3 = RotaryStyle(qkv_bias=False, layer_scale=1e-5, eps=1e-5, rope=DINOV3_ROPE)
DINOV3_GATED = replace(DINOV3, mlp=SwiGlu, act=nn.SiLU)


def eva(image: int = 224, num_classes: int = 1000, pool: str = "avg") -> RotaryViTConfig:
    return eva02(GIANT, EVA, image, num_classes, pool)


def eva02(
    size: Size, style: RotaryStyle, image: int = 224, num_classes: int = 1000, pool: str = "avg", patch: int = 14
) -> RotaryViTConfig:
    return RotaryViTConfig(*size, patch, image, style, fc_norm=pool == "avg", global_pool=pool, num_classes=num_classes)


def sbb(size: Size, registers: int, style: RotaryStyle = SBB) -> RotaryViTConfig:
    """A variant without class token and learned positions, with the norm after the pool."""
    tokens = RotaryViTConfig(*size, 16, 256, style, class_token=False, registers=registers, positions=False)
    return replace(tokens, fc_norm=True, global_pool="avg")


def rope_vit(size: Size, style: RotaryStyle, positions: bool = False) -> RotaryViTConfig:
    return RotaryViTConfig(*size, style=style, positions=positions, prefix_positions=False)


def dinov3(size: Size, style: RotaryStyle = DINOV3) -> RotaryViTConfig:
    """Maps pass through the last norm, as in the evaluations of the authors."""
    tokens = RotaryViTConfig(*size, 16, 256, style, registers=4, positions=False, norm_maps=True)
    return replace(tokens, global_pool="avg", num_classes=0)


def biased(style: RotaryStyle) -> RotaryStyle:
    """The style with the biases of queries and values that the published files have."""
    return replace(style, qkv_bias=True, attention=KeylessBiasAttention)


def pe_core(size: Size, patch: int, image: int, num_classes: int, ratio: float = 4.0) -> RotaryViTConfig:
    """The image encoder of a model of images and texts; the gigantic one has no class token."""
    rope = RopeStyle(reference=image // patch, offset=float(size != GIGANTIC), columns_first=True)
    style = RotaryStyle(ratio, eps=1e-5, rope=rope)
    tokens = RotaryViTConfig(*size, patch, image, style, class_token=size != GIGANTIC, pre_norm=True)
    return replace(tokens, global_pool="map", num_classes=num_classes)


def pe(
    size: Size, patch: int, image: int, layer_scale: float = 0.0, ratio: float = 4.0, class_token: bool = True
) -> RotaryViTConfig:
    """A variant for language models or dense prediction, without a last norm."""
    rope = RopeStyle(reference=32, offset=float(class_token), columns_first=True)
    style = RotaryStyle(ratio, layer_scale=layer_scale, eps=1e-5, rope=rope)
    tokens = RotaryViTConfig(*size, patch, image, style, class_token=class_token, pre_norm=True)
    return replace(tokens, last_norm=False, global_pool="avg", num_classes=0)


def eva_data(size: int = 224, crop: float = 0.9) -> DataConfig:
    return DataConfig((size, size), CLIP_MEAN, CLIP_STD, crop=crop)


PE_RATIO = 8960 / 1536
LVD, EUPE, SATELLITE = "lvd1689m", "eupe_lvd1689m", "sat493m"
FT_1K, FT_22K = "mim_in22k_ft_in1k", "mim_in22k_ft_in22k"
M38M_1K, M38M_22K = "mim_m38m_ft_in1k", "mim_m38m_ft_in22k"
# DataConfig fields of weights that differ from those of their variant's default weights, by tag.
TAGS = {
    "m30m_ft_in22k_in1k": IMAGENET,
    **{tag: {"crop_mode": "center"} for tag in (FT_1K, M38M_1K)},
    SATELLITE: {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)},
}
VARIANTS = [
    ("eva_giant_patch14_224", eva(), "clip_ft_in1k", eva_data()),
    ("eva_giant_patch14_336", eva(336), "clip_ft_in1k m30m_ft_in22k_in1k", squashed(eva_data(336, 1.0))),
    ("eva_giant_patch14_560", eva(560), "m30m_ft_in22k_in1k", squashed(data(560, 1.0))),
    ("eva_giant_patch14_clip_224", eva(224, 1024, "token"), "laion400m merged2b", eva_data()),
    ("eva02_tiny_patch14_224", eva02(TINY, PACKED, num_classes=0), "mim_in22k", eva_data()),
    ("eva02_small_patch14_224", eva02(SMALL, PACKED, num_classes=0), "mim_in22k", eva_data()),
    ("eva02_base_patch14_224", eva02(BASE, NORMED, num_classes=0), "mim_in22k", eva_data()),
    ("eva02_large_patch14_224", eva02(LARGE, NORMED, num_classes=0), "mim_in22k mim_m38m", eva_data()),
    ("eva02_tiny_patch14_336", eva02(TINY, PACKED, 336), FT_1K, eva_data(336, 1.0)),
    ("eva02_small_patch14_336", eva02(SMALL, PACKED, 336), FT_1K, eva_data(336, 1.0)),
    (
        "eva02_base_patch14_448",
        eva02(BASE, NORMED, 448),
        f"{FT_22K}_in1k {FT_1K} {FT_22K}",
        squashed(eva_data(448, 1.0)),
    ),
    (
        "eva02_large_patch14_448",
        eva02(LARGE, NORMED, 448),
        f"{FT_22K}_in1k {M38M_22K}_in1k {FT_1K} {M38M_1K} {FT_22K} {M38M_22K}",
        squashed(eva_data(448, 1.0)),
    ),
    ("eva02_base_patch16_clip_224", eva02(BASE, NORMED_TWICE, 224, 512, "token", 16), "merged2b", eva_data()),
    ("eva02_large_patch14_clip_224", eva02(LARGE, NORMED_TWICE, 224, 768, "token"), "merged2b", eva_data()),
    ("eva02_large_patch14_clip_336", eva02(LARGE, NORMED_TWICE, 336, 768, "token"), "merged2b", eva_data(336, 1.0)),
    ("vit_medium_patch16_rope_reg1_gap_256", sbb(MEDIUM, 1), "sbb_in1k", half(256, 0.95)),
    (
        "vit_mediumd_patch16_rope_reg1_gap_256",
        sbb((512, 20, 8), 1, SBB_WITHOUT_BIAS),
        "sbb_in1k",
        half(256, 0.95),
    ),
    ("vit_betwixt_patch16_rope_reg4_gap_256", sbb((640, 12, 10), 4), "sbb_in1k", eva_data(256, 0.95)),
    ("vit_base_patch16_rope_reg1_gap_256", sbb(BASE, 1), "sbb_in1k", half(256, 0.95)),
    ("vit_pe_core_tiny_patch16_384", pe_core(TINY, 16, 384, 512), "fb", half(384, 1.0)),
    ("vit_pe_core_small_patch16_384", pe_core(SMALL, 16, 384, 512), "fb", half(384, 1.0)),
    ("vit_pe_core_base_patch16_224", pe_core(BASE, 16, 224, 1024), "fb", half(224, 1.0)),
    ("vit_pe_core_large_patch14_336", pe_core(LARGE, 14, 336, 1024), "fb", half(336, 1.0)),
    ("vit_pe_core_gigantic_patch14_448", pe_core(GIGANTIC, 14, 448, 1280, PE_RATIO), "fb", half(448, 1.0)),
    ("vit_pe_lang_large_patch14_448", pe((1024, 23, 16), 14, 448, 0.1), "fb fb_tiling", half(448, 1.0)),
    (
        "vit_pe_lang_gigantic_patch14_448",
        pe((1536, 47, 16), 14, 448, 0.1, PE_RATIO, class_token=False),
        "fb fb_tiling",
        half(448, 1.0),
    ),
    ("vit_pe_spatial_tiny_patch16_512", pe(TINY, 16, 512), "fb", half(512, 1.0)),
    ("vit_pe_spatial_small_patch16_512", pe(SMALL, 16, 512), "fb", half(512, 1.0)),
    ("vit_pe_spatial_base_patch16_512", pe(BASE, 16, 512), "fb", half(512, 1.0)),
    ("vit_pe_spatial_large_patch14_448", pe(LARGE, 14, 448), "fb", half(448, 1.0)),
    (
        "vit_pe_spatial_gigantic_patch14_448",
        pe(GIGANTIC, 14, 448, 0.1, PE_RATIO, class_token=False),
        "fb",
        half(448, 1.0),
    ),
    *(
        (f"vit_{name}_patch16_rope_{kind}224", rope_vit(size, style, positions), "naver_in1k", data())
        for name, size in (("small", SMALL), ("base", BASE), ("large", LARGE))
        for kind, style, positions in (
            ("", AXIAL, False),
            ("mixed_", MIXED, False),
            ("ape_", AXIAL, True),
            ("mixed_ape_", MIXED, True),
        )
    ),
    ("vit_tiny_patch16_dinov3_qkvb", dinov3(TINY, biased(DINOV3)), EUPE, data(256, 1.0)),
    *(
        (f"vit_{name}_patch16_dinov3", dinov3(size, style), tags, data(256, 1.0))
        for name, size, style, tags in (
            ("small", SMALL, DINOV3, LVD),
            ("small_plus", SMALL, DINOV3_GATED, LVD),
            ("base", BASE, DINOV3, LVD),
            ("large", LARGE, DINOV3, f"{LVD} {SATELLITE}"),
            ("huge_plus", HUGE, DINOV3_GATED, LVD),
            ("7b", SEVEN_B, replace(DINOV3_GATED, mlp_ratio=2.0), f"{LVD} {SATELLITE}"),
        )
    ),
    *(
        (f"vit_{name}_patch16_dinov3_qkvb", dinov3(size, biased(style)), tags, data(256, 1.0))
        for name, size, style, tags in (
            ("small", SMALL, DINOV3, f"{LVD} {EUPE}"),
            ("small_plus", SMALL, DINOV3_GATED, LVD),
            ("base", BASE, DINOV3, f"{LVD} {EUPE}"),
            ("large", LARGE, DINOV3, f"{LVD} {SATELLITE}"),
            ("huge_plus", HUGE, DINOV3_GATED, LVD),
        )
    ),
]
register(
    {name: Variant(RotaryViT, config, tuple(tags.split()), images, TAGS) for name, config, tags, images in VARIANTS}
)
