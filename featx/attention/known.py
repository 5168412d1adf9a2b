"""The classes of modules whose attention can be captured, by full name, so that none of their packages is imported."""

from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any


class Kind(Enum):
    """How a module's weights are proven.

    WATCHED: they go into the fused kernel, or from a softmax into a matrix product with the values.
    SEPARABLE: they go from a softmax into a product with the keys.
    ASKED: PyTorch's own module is asked for them.
    """

    WATCHED = "watched"
    SEPARABLE = "separable"
    ASKED = "asked"


# Modules whose weights are among tokens or pixels, not channels, and come as (B, heads, queries, keys).
TIMM = {
    "layers.attention": ("Attention", "AttentionRope"),
    "layers.attention2d": ("MultiQueryAttention2d",),
    "layers.attention_pool": ("AttentionPoolLatent",),
    "layers.attention_pool2d": ("AttentionPool2d",),
    "models.beit": ("Attention",),
    "models.cait": ("ClassAttn",),
    "models.crossvit": ("CrossAttention",),
    "models.davit": ("WindowAttention",),
    "models.efficientformer": ("Attention",),
    "models.eva": ("EvaAttention",),
    "models.fastvit": ("Attention",),
    "models.gcvit": ("WindowAttentionGlobal",),
    "models.hieradet_sam2": ("MultiScaleAttention",),
    "models.levit": ("Attention", "AttentionDownsample"),
    "models.maxxvit": ("Attention2d", "AttentionCl"),
    "models.metaformer": ("Attention",),
    "models.mvitv2": ("MultiScaleAttention",),
    "models.nextvit": ("EfficientAttention",),
    "models.pvt_v2": ("Attention",),
    "models.swin_transformer": ("WindowAttention",),
    "models.swin_transformer_v2": ("WindowAttention",),
    "models.swin_transformer_v2_cr": ("WindowMultiHeadAttention",),
    "models.tiny_vit": ("Attention",),
    "models.tnt": ("Attention",),
    "models.twins": ("GlobalSubSampleAttn",),
    "models.vision_transformer_relpos": ("RelPosAttention",),
    "models.visformer": ("Attention",),
    "models.volo": ("Attention", "ClassAttention"),
}
TRANSFORMERS = {
    "aimv2": ("Aimv2Attention", "Aimv2AttentionPoolingHead"),
    "beit": ("BeitAttention",),
    "blip": ("BlipAttention",),
    "chinese_clip": ("ChineseCLIPVisionAttention",),
    "clip": ("CLIPAttention",),
    "data2vec": ("Data2VecVisionSelfAttention", "Data2VecVisionSdpaSelfAttention"),
    "deit": ("DeiTAttention",),
    "dinov2": ("Dinov2Attention",),
    "dinov2_with_registers": ("Dinov2WithRegistersAttention",),
    "dinov3_vit": ("DINOv3ViTAttention",),
    "donut": ("DonutSwinSelfAttention",),
    "dpt": ("DPTSelfAttention",),
    "glpn": ("GLPNEfficientSelfAttention",),
    "ijepa": ("IJepaAttention",),
    "internvl": ("InternVLVisionAttention",),
    "levit": ("LevitAttention", "LevitAttentionSubsample"),
    "lw_detr": ("LwDetrViTAttention",),
    "maskformer": ("MaskFormerSwinSelfAttention",),
    "metaclip_2": ("MetaClip2Attention",),
    "mlcd": ("MLCDAttention",),
    "mobilevit": ("MobileViTSelfAttention",),
    "pixio": ("PixioAttention",),
    "pvt": ("PvtEfficientSelfAttention",),
    "pvt_v2": ("PvtV2SelfAttention",),
    "rf_detr": ("RfDetrDinov2Attention",),
    "sam": ("SamVisionSdpaAttention",),
    "sam2": ("Sam2MultiScaleAttention",),
    "sam_hq": ("SamHQVisionSdpaAttention",),
    "sapiens2": ("Sapiens2Attention",),
    "segformer": ("SegformerAttention",),
    "siglip": ("SiglipAttention",),
    "swin": ("SwinAttention",),
    "swinv2": ("Swinv2SelfAttention",),
    "tipsv2": ("Tipsv2VisionAttention",),
    "vit": ("ViTAttention",),
    "vit_mae": ("ViTMAEAttention",),
    "vit_msn": ("ViTMSNAttention",),
    "vitpose_backbone": ("VitPoseBackboneSelfAttention",),
}
OTHERS = {
    "featx.models.layers.transformer": ("Attention",),
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
}

SEPARABLE = {
    "featx.models.mobilevitv2": ("LinearAttention",),
    "timm.models.mobilevit": ("LinearSelfAttention",),
    "transformers.models.mobilevitv2.modeling_mobilevitv2": ("MobileViTV2LinearSelfAttention",),
}

# Modules of transformers that are not called modeling_ and their folder.
MODELING = {"data2vec": "data2vec_vision", "donut": "donut_swin", "maskformer": "maskformer_swin"}

ASKED = {"torch.nn.modules.activation": ("MultiheadAttention",)}


def _full_names() -> Iterator[tuple[str, Kind]]:
    modeling = {f"{family}.modeling_{MODELING.get(family, family)}": names for family, names in TRANSFORMERS.items()}
    for kind, prefix, table in (
        (Kind.WATCHED, "", OTHERS),
        (Kind.WATCHED, "timm.", TIMM),
        (Kind.WATCHED, "transformers.models.", modeling),
        (Kind.SEPARABLE, "", SEPARABLE),
        (Kind.ASKED, "", ASKED),
    ):
        yield from ((f"{prefix}{module}.{name}", kind) for module, names in table.items() for name in names)


KINDS: Mapping[str, Kind] = dict(_full_names())

# Blocks that attend to each pixel of their patches by itself, and how many pixels these have.
PER_POSITION: Mapping[str, Callable[[Any], int]] = {
    "featx.models.mobilevit.MobileViTBlock": lambda block: block.patch**2,
    "timm.models.mobilevit.MobileVitBlock": lambda block: block.patch_area,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTLayer": lambda block: (
        block.patch_width * block.patch_height
    ),
}
