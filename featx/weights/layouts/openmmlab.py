"""Layouts of OpenMMLab's ResNet, ConvNeXt and ViT, in files of MMPretrain, MMSegmentation and MMDetection.

A file holds a whole network: its backbone under `backbone.`, and heads beside it. Plain ResNets have native names in
the backbone. V1c and V1d have a stem of three convolutions, which MMPretrain pairs with their norms and the others
number. MMPretrain's V1d has no pool in a shortcut without stride, so that the layers behind it have lower numbers.
"""

import re
from collections.abc import Collection

from torch import Tensor

from ...errors import CheckpointError, names_in
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

BACKBONE = r"(backbone\.)?"
INSIDE: Rule = (r"^backbone\.", "")
HEADS = {
    r"(neck|decode_head|auxiliary_head|rpn_head|roi_head|bbox_head|mask_head)\.": "neck or head of another network",
    r"data_preprocessor\.": "mean and standard deviation of images",
}


def to_openmmlab(state: State, rules: tuple[Rule, ...], known: str, family: str) -> StateDict:
    """Apply the rules, and add `backbone.` to all names but those of the head.

    Args:
        state: a native state dict.
        rules: rename rules.
        known: pattern of the names that OpenMMLab's backbone has.
        family: name of the backbone, for the error.

    Raises:
        CheckpointError: OpenMMLab's backbone lacks some of the tensors; the message lists them.
    """
    new = rename_keys(state, rules)
    if unsupported := [name for name in new if not re.match(rf"({known}|head\.)", name)]:
        raise CheckpointError(
            f"OpenMMLab's {family} has no place for {len(unsupported)} of {len(new)} tensors, so that it cannot hold "
            f"this model: {names_in(unsupported)}"
        )
    return {name if name.startswith("head.") else f"backbone.{name}": tensor for name, tensor in new.items()}


RESNET: tuple[Rule, ...] = (
    INSIDE,
    (r"^head\.fc\.", "fc."),
    (r"^stem\.(2\.bn|7)\.", "bn1."),
    (r"^stem\.(\d)\.conv\.", lambda match: f"conv1.{3 * int(match[1])}."),
    (r"^stem\.(\d)\.bn\.", lambda match: f"conv1.{3 * int(match[1]) + 1}."),
    (r"^stem\.", "conv1."),
)
TO_DEEP: tuple[Rule, ...] = (
    (r"^conv1\.([036])\.", lambda match: f"stem.{int(match[1]) // 3}.conv."),
    (r"^conv1\.([14])\.", lambda match: f"stem.{int(match[1]) // 3}.bn."),
    (r"^bn1\.", "stem.2.bn."),
)
SHORTCUT = re.compile(r"(layer\d\.0\.downsample)\.(\d)\.(\w+)$")
RESNET_NAMES = r"(conv1|bn1|stem\.\d\.(conv|bn)|layer\d\.\d+\.(conv\d|bn\d|downsample\.[012]))\.[a-z_]+$"


def resnet_to_native(state: State, names: Collection[str]) -> StateDict:
    return shift_shortcuts(rename_keys(state, RESNET), names)


def shift_shortcuts(state: State, names: Collection[str]) -> StateDict:
    """Add 1 to the numbers in shortcuts that start with a convolution, where those of the model start with a pool."""
    pooled = {match[1] for name in names if (match := SHORTCUT.match(name)) and match[2] == "2"}
    starts = {match[1] for name in state if (match := SHORTCUT.match(name)) and match[2] == "0"}
    return {shifted(name, pooled & starts, 1): tensor for name, tensor in state.items()}


def shifted(name: str, shortcuts: Collection[str], by: int) -> str:
    """The name with another number inside the shortcut, if it is in one of these shortcuts."""
    match = SHORTCUT.match(name)
    return f"{match[1]}.{int(match[2]) + by}.{match[3]}" if match and match[1] in shortcuts else name


def resnet_from_native(state: State) -> StateDict:
    """Convert to MMPretrain's names; CheckpointError for a ResNet that it lacks."""
    pooled = "layer1.0.downsample.2.weight" in state
    new = {shifted(name, ("layer1.0.downsample",) if pooled else (), -1): tensor for name, tensor in state.items()}
    deep, last = (state.get(f"conv1.{number}.weight") for number in (0, 6))
    if deep is not None and (last is None or last.shape[0] != 2 * deep.shape[0]):
        raise CheckpointError(
            "OpenMMLab's ResNet has three convolutions in its stem, the last one twice as wide as the first: it cannot "
            f"hold this model, whose first has {deep.shape[0]} channels"
        )
    rules = () if deep is None else TO_DEEP
    return to_openmmlab(new, (*rules, (r"^fc\.", "head.fc.")), RESNET_NAMES, "ResNet")


is_deep = has_keys(rf"{BACKBONE}stem\.0\.(conv\.)?weight$", rf"{BACKBONE}layer1\.0\.conv1\.weight$")
is_classifier = has_keys(r"backbone\.conv1\.weight$", r"backbone\.layer1\.0\.conv1\.weight$", r"head\.fc\.weight$")


def is_resnet(state: State) -> bool:
    """Whether the stem has OpenMMLab's names, or the classifier of a plain ResNet has."""
    return is_deep(state) or is_classifier(state)


CONVNEXT: tuple[Rule, ...] = (
    INSIDE,
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm3\.", "head.norm."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^head\.norm\.", "norm3."),
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc([12])\.", r".pointwise_conv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
)
CONVNEXT_NAMES = (
    r"downsample_layers\.\d\.[01]\.\w+$|norm3\."
    r"|stages\.\d\.\d+\.((depthwise_conv|norm|pointwise_conv[12])\.\w+|gamma|grn\.(gamma|beta))$"
)


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert to native names. Small variants, with two blocks in the first stage, have 1x1 convolutions in the MLP."""
    small = not has_keys(rf"{BACKBONE}stages\.0\.2\.")(state)
    new = rename_keys(state, CONVNEXT)
    return {name: pointwise(t, small) if is_pointwise(name) else t for name, t in new.items()}


def is_pointwise(name: str) -> bool:
    return re.search(r"\.(mlp\.fc|pointwise_conv)[12]\.weight$", name) is not None


def pointwise(weight: Tensor, convolution: bool) -> Tensor:
    """The weight (chs, in_chs) of a linear layer or (chs, in_chs, 1, 1) of a convolution, as one of the two."""
    linear = weight.flatten(1) if weight.ndim == 4 and weight.shape[2:] == (1, 1) else weight
    return linear[..., None, None] if convolution else linear


def convnext_from_native(state: State) -> StateDict:
    """Convert to MMPretrain's names, with linear layers; CheckpointError for a ConvNeXt that it lacks."""
    if "head.pre_logits.fc.weight" in state or "stem.2.weight" in state:
        raise CheckpointError("OpenMMLab's ConvNeXt has one convolution in its stem and one layer in its classifier")
    new = to_openmmlab(state, TO_CONVNEXT, CONVNEXT_NAMES, "ConvNeXt")
    return {name: pointwise(t, convolution=False) if is_pointwise(name) else t for name, t in new.items()}


VIT: tuple[Rule, ...] = (
    INSIDE,
    (r"^head\.(layers\.head|fc)\.", "head."),
    (r"^head\.layers\.pre_logits\.", "pre_logits.fc."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^(ln|norm)1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^layers\.(\d+)\.ln([12])\.", r"blocks.\1.norm\2."),
    (r"^layers\.", "blocks."),
    (r"\.attn\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.attn\.gamma1\.weight$", ".ls1.gamma"),
    (r"\.ffn\.gamma2\.weight$", ".ls2.gamma"),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
TO_VIT: tuple[Rule, ...] = (
    (r"^head\.", "head.layers.head."),
    (r"^pre_logits\.fc\.", "head.layers.pre_logits."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^norm_pre\.", "pre_norm."),
    (r"^norm\.", "ln1."),
    (r"^fc_norm\.", "ln2."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
    (r"^blocks\.", "layers."),
    (r"\.ls1\.gamma$", ".attn.gamma1.weight"),
    (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
VIT_NAMES = (
    r"(cls_token|pos_embed)$|(patch_embed\.projection|pre_norm|ln[12])\."
    r"|layers\.\d+\.(ln[12]\.|attn\.(qkv|proj|gamma1)\.|ffn\.(layers\.(0\.0|1)|gamma2)\.)"
)


def vit_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, VIT)


def vit_from_native(state: State) -> StateDict:
    """Convert to MMPretrain's names; CheckpointError for registers, gated MLPs and stems."""
    gated = [t for name, t in state.items() if name.endswith(".mlp.fc2.weight")]
    wide = [t for name, t in state.items() if name.endswith(".mlp.fc1.weight")]
    if any(first.shape[0] != second.shape[1] for first, second in zip(wide, gated, strict=True)):
        raise CheckpointError("OpenMMLab's ViT with gated MLPs has other tensors: this model cannot be converted")
    return to_openmmlab(state, TO_VIT, VIT_NAMES, "ViT")


LAYOUTS = (
    Layout("openmmlab", "ResNet", is_resnet, resnet_to_native, resnet_from_native, ignores=HEADS),
    Layout(
        "openmmlab",
        "ConvNeXt",
        has_keys(
            rf"{BACKBONE}downsample_layers\.0\.0\.weight$",
            rf"{BACKBONE}stages\.0\.0\.depthwise_conv\.weight$",
            rf"{BACKBONE}stages\.0\.0\.pointwise_conv1\.weight$",
        ),
        convnext_to_native,
        convnext_from_native,
        ignores=HEADS | {rf"{BACKBONE}norm[0-2]\.": "norms of the other maps"},
        notes=("maps are not normalized, unlike those of MMSegmentation and MMDetection",),
    ),
    Layout(
        "openmmlab",
        "ViT",
        has_keys(
            rf"{BACKBONE}patch_embed\.projection\.weight$",
            rf"{BACKBONE}layers\.0\.ln1\.weight$",
            rf"{BACKBONE}layers\.0\.ffn\.layers\.0\.0\.weight$",
        ),
        vit_to_native,
        vit_from_native,
        ignores=HEADS,
        settings={"antialias": False},
        notes=("positions are resized without antialiasing (antialias=False)",),
    ),
)
