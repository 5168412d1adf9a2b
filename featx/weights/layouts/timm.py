"""Layouts of old timm ViTs; current timm names are the native ones.

The first ViTs embedded patches with a linear layer. Those pretrained on ImageNet-21k had a tanh layer before the
classifier, which current timm omits, so that its logits differ.
"""

from collections.abc import Callable, Collection
from math import isqrt

from ..layout import Layout, has_keys
from ..state_dict_keys import State, StateDict

PATCHES, REPRESENTATION = "patch_embed.proj.weight", "pre_logits.fc.weight"
WIDTHS = (192, 384, 512, 768, 1024, 1280)

is_vit = has_keys(r"cls_token$", r"pos_embed$", r"patch_embed\.proj\.weight$", r"blocks\.0\.attn\.qkv\.weight$")


def to_native(state: State, _names: Collection[str]) -> StateDict:
    """Reshape the patch embedding of a linear layer, (dim, 3 * patch * patch), to that of a convolution."""
    weight = state.get(PATCHES)
    if weight is None or weight.ndim != 2:
        return dict(state)
    side = isqrt(weight.shape[1] // 3)
    if not side or 3 * side * side != weight.shape[1]:
        return dict(state)  # loading then reports the shape
    return {**state, PATCHES: weight.unflatten(1, (3, side, side))}


def from_native(state: State) -> StateDict:
    return dict(state)


def has_linear_patches(state: State) -> bool:
    return is_vit(state) and state[PATCHES].ndim == 2 and REPRESENTATION not in state


def has_representation(width: int) -> Callable[[State], bool]:
    def recognizes(state: State) -> bool:
        return is_vit(state) and REPRESENTATION in state and state[REPRESENTATION].shape[:1] == (width,)

    return recognizes


LAYOUTS = (
    Layout("timm", "ViT", has_linear_patches, to_native),
    *(
        Layout("timm", "ViT", has_representation(width), to_native, from_native, settings={"representation": width})
        for width in WIDTHS
    ),
)
