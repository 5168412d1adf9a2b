"""Layouts of torchvision's ConvNeXt, ViT and RegNet; its ResNets have native names.

A RegNet block has a transform `f` with the convolutions a, b and c.
"""

import re
from collections.abc import Collection

from torch import Tensor

from ...errors import CheckpointError
from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys


def downsample_name(match: re.Match[str]) -> str:
    """The native name of a downsampling layer; torchvision numbers stages and downsampling layers consecutively."""
    return f"stages.{int(match[1]) // 2}.downsample."


CONVNEXT: tuple[Rule, ...] = (
    (r"^features\.0\.", "stem."),
    (r"^features\.([246])\.", downsample_name),
    (r"^features\.([1357])\.(\d+)\.", lambda match: f"stages.{int(match[1]) // 2}.blocks.{match[2]}."),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
    (r"\.layer_scale$", ".gamma"),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.", "features.0."),
    (r"^stages\.(\d+)\.downsample\.", lambda match: f"features.{2 * int(match[1])}."),
    (r"^stages\.(\d+)\.blocks\.", lambda match: f"features.{2 * int(match[1]) + 1}."),
    (r"\.conv_dw\.", ".block.0."),
    (r"^(features.*)\.norm\.", r"\1.block.2."),
    (r"\.mlp\.fc1\.", ".block.3."),
    (r"\.mlp\.fc2\.", ".block.5."),
    (r"\.gamma$", ".layer_scale"),
    (r"^head\.norm\.", "classifier.0."),
    (r"^head\.fc\.", "classifier.2."),
)


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    return {name: shaped(name, tensor) for name, tensor in rename_keys(state, CONVNEXT).items()}


def shaped(name: str, tensor: Tensor) -> Tensor:
    """Flatten layer scale from (chs, 1, 1) to (chs,)."""
    return tensor.flatten() if name.endswith(".gamma") else tensor


def convnext_from_native(state: State) -> StateDict:
    new = rename_keys(state, TO_CONVNEXT)
    return {name: t[:, None, None] if name.endswith(".layer_scale") else t for name, t in new.items()}


# Before 2022-08, the MLP layers were named linear_1 and linear_2; such files are still published.
VIT: tuple[Rule, ...] = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
)
TO_VIT: tuple[Rule, ...] = (
    (r"^cls_token$", "class_token"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^head\.", "heads.head."),
    (r"^pre_logits\.fc\.", "heads.pre_logits."),
)


def vit_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, VIT)


def vit_from_native(state: State) -> StateDict:
    return rename_keys(state, TO_VIT)


is_convnext = has_keys(
    r"features\.0\.1\.weight$", r"features\.1\.0\.layer_scale$", r"features\.1\.0\.block\.5\.weight$"
)
is_vit = has_keys(
    r"class_token$", r"conv_proj\.weight$", r"encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight$"
)
RESNET = re.compile(r"(conv1|fc|bn1)\.[a-z_]+$|layer\d\.\d+\.(conv\d|bn\d|downsample\.[01])\.[a-z_]+$")


def resnet_to_native(state: State, _names: Collection[str]) -> StateDict:
    return dict(state)


def resnet_from_native(state: State) -> StateDict:
    """A copy with the same names; CheckpointError for a ResNet that torchvision lacks."""
    if others := [name for name in state if not RESNET.match(name)]:
        raise CheckpointError(f"torchvision has no ResNet of that kind: it would not know {others[:3]}")
    return dict(state)


def is_never_recognized(_state: State) -> bool:
    return False


REGNET: tuple[Rule, ...] = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
    (r"\.f\.([abc])\.", lambda match: f".conv{'abc'.index(match[1]) + 1}."),
    (r"\.f\.se\.", ".se."),
    (r"\.proj\.", ".downsample."),
    (r"\.(conv\d|downsample)\.0\.", r".\1.conv."),
    (r"\.(conv\d|downsample)\.1\.", r".\1.bn."),
    (r"^fc\.", "head.fc."),
)
TO_REGNET: tuple[Rule, ...] = (
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.bn\.", "stem.1."),
    (r"^s(\d)\.b(\d+)\.", lambda match: f"trunk_output.block{match[1]}.block{match[1]}-{int(match[2]) - 1}."),
    (r"\.(conv\d|downsample)\.conv\.", r".\1.0."),
    (r"\.(conv\d|downsample)\.bn\.", r".\1.1."),
    (r"\.conv([123])\.", lambda match: f".f.{'abc'[int(match[1]) - 1]}."),
    (r"\.se\.", ".f.se."),
    (r"\.downsample\.", ".proj."),
    (r"^head\.fc\.", "fc."),
)


def regnet_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, REGNET)


def regnet_from_native(state: State) -> StateDict:
    return rename_keys(state, TO_REGNET)


is_regnet = has_keys(r"stem\.1\.running_mean$", r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight$")

LAYOUTS = (
    Layout("torchvision", "ResNet", is_never_recognized, resnet_to_native, resnet_from_native, data=IMAGENET),
    Layout("torchvision", "ConvNeXt", is_convnext, convnext_to_native, convnext_from_native, data=IMAGENET),
    Layout("torchvision", "ViT", is_vit, vit_to_native, vit_from_native, data=IMAGENET),
    Layout("torchvision", "RegNet", is_regnet, regnet_to_native, regnet_from_native, data=IMAGENET),
)
