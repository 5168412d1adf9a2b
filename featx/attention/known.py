"""The classes of modules whose attention can be captured, by full name, so that none of their packages is imported."""

from collections.abc import Callable, Mapping
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
WATCHED = {
    "featx.models.layers.transformer": ("Attention",),
    "timm.layers.attention": ("Attention", "AttentionRope"),
    "timm.layers.attention_pool": ("AttentionPoolLatent",),
    "timm.models.beit": ("Attention",),
    "timm.models.eva": ("EvaAttention",),
    "timm.models.swin_transformer": ("WindowAttention",),
    "timm.models.vision_transformer_relpos": ("RelPosAttention",),
}

SEPARABLE = {
    "featx.models.mobilevitv2": ("LinearAttention",),
    "timm.models.mobilevit": ("LinearSelfAttention",),
    "transformers.models.mobilevitv2.modeling_mobilevitv2": ("MobileViTV2LinearSelfAttention",),
}

ASKED = {"torch.nn.modules.activation": ("MultiheadAttention",)}

KINDS: Mapping[str, Kind] = {
    f"{module}.{name}": kind
    for kind, table in ((Kind.WATCHED, WATCHED), (Kind.SEPARABLE, SEPARABLE), (Kind.ASKED, ASKED))
    for module, names in table.items()
    for name in names
}

# Blocks that attend to each pixel of their patches by itself, and how many pixels these have.
PER_POSITION: Mapping[str, Callable[[Any], int]] = {
    "featx.models.mobilevit.MobileViTBlock": lambda block: block.patch**2,
    "timm.models.mobilevit.MobileVitBlock": lambda block: block.patch_area,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTLayer": lambda block: (
        block.patch_width * block.patch_height
    ),
}
