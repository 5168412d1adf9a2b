"""Layouts of MMPretrain, MMSegmentation and MMDetection: ResNetV1c and V1d, ConvNeXt and ViT.

Their plain ResNets have native names. Networks are `backbone.` beside the heads.
"""

from collections.abc import Collection, Mapping

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys
from .facebook import convnext_from_native, convnext_to_native

BACKBONE = r"(backbone\.)?"
STEM: tuple[Rule, ...] = (
    (r"^backbone\.", ""),
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.", "conv1."),
    (r"^head\.fc\.", "fc."),
)
TO_STEM: tuple[Rule, ...] = (
    (r"^bn1\.", "stem.7."),
    (r"^conv1\.", "stem."),
    (r"^fc\.", "head.fc."),
)
# to and from the names of ConvNeXt's authors
CONVNEXT: tuple[Rule, ...] = (
    (r"^backbone\.", ""),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"^norm3\.", "norm."),
    (r"^head\.fc\.", "head."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"^norm\.", "norm3."),
    (r"^head\.", "head.fc."),
)
VIT: tuple[Rule, ...] = (
    (r"^backbone\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^ln1\.", "norm."),
    (r"^layers\.", "blocks."),
    (r"\.ln(\d)\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    (r"^head\.layers\.head\.", "head."),
)
TO_VIT: tuple[Rule, ...] = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm\.", "ln1."),
    (r"^blocks\.", "layers."),
    (r"\.norm(\d)\.", r".ln\1."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^head\.", "head.layers.head."),
)


def with_prefix(state: State) -> StateDict:
    """The names with `backbone.`, except those of the classifier."""
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in state.items()}


def resnet_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, STEM)


def resnet_from_native(state: State) -> StateDict:
    return with_prefix(rename_keys(state, TO_STEM))


def mm_convnext_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert by way of the authors' names; pointwise convolutions of shape (out, in, 1, 1) become linear there."""
    renamed = rename_keys(state, CONVNEXT)
    linear = {n: t.flatten(1) if ".pwconv" in n and t.ndim == 4 else t for n, t in renamed.items()}
    return convnext_to_native(linear, names)


def mm_convnext_from_native(state: State) -> StateDict:
    flat = {n: t.flatten() if ".grn." in n else t for n, t in convnext_from_native(state).items()}
    return with_prefix(rename_keys(flat, TO_CONVNEXT))


def vit_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, VIT)


def vit_from_native(state: State) -> StateDict:
    return with_prefix(rename_keys(state, TO_VIT))


HEADS: Mapping[str, str] = {
    r"(decode_head|auxiliary_head|neck|bbox_head|rpn_head|roi_head|mask_head)\.": "other part of the network",
    r"data_preprocessor\.": "mean and standard deviation of the images",
    r"(backbone\.)?norm[012]\.": "norms of intermediate maps",
    r"head\.layers\.pre_logits\.": "layer before the classifier, which native models of this size lack",
}
LAYOUTS = (
    Layout(
        "openmmlab",
        "ResNet",
        has_keys(
            rf"{BACKBONE}stem\.0\.weight$",
            rf"{BACKBONE}stem\.7\.running_mean$",
            rf"{BACKBONE}layer1\.0\.conv1\.weight$",
        ),
        resnet_to_native,
        resnet_from_native,
        ignores=HEADS,
        data=IMAGENET,
    ),
    Layout(
        "openmmlab",
        "ConvNeXt",
        has_keys(
            rf"{BACKBONE}stages\.0\.0\.depthwise_conv\.weight$", rf"{BACKBONE}stages\.0\.0\.pointwise_conv1\.weight$"
        ),
        mm_convnext_to_native,
        mm_convnext_from_native,
        ignores=HEADS,
        data=IMAGENET,
    ),
    Layout(
        "openmmlab",
        "ViT",
        has_keys(rf"{BACKBONE}patch_embed\.projection\.weight$", rf"{BACKBONE}layers\.0\.ffn\.layers\.0\.0\.weight$"),
        vit_to_native,
        vit_from_native,
        ignores=HEADS,
        settings={"antialias": False},
        notes=("positions are resized without antialiasing (antialias=False)",),
    ),
)
