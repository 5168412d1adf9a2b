"""Layouts of ConvNeXt, ConvNeXt V2 and ViTs in the repositories of facebookresearch and in derived files.

The encoder of ConvNeXt V2's masked pretraining (FCMAE) uses MinkowskiEngine, which wraps layers and flattens kernels.
DINOv3 and EUPE store their last norm twice, or include the projectors of distillation.

The published ViTs of DeiT, DINO and MAE have native names, and so have SwAV's ResNets, with two heads beside them.
DINOv2 may group blocks in chunks. With registers, DINOv2 has a position for the class token and none for the registers;
that position is added to the class token. DeiT III uses other names for layer scale.
"""

import re
from collections.abc import Collection
from math import isqrt

import torch
from torch import Tensor

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

CONVNEXT: tuple[Rule, ...] = (
    (r"^encoder\.", ""),
    (r"\.(?:ln|linear)\.(weight|bias)$", r".\1"),
    (r"\.kernel$", ".weight"),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
)


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert to native names. Small variants, with two blocks in the first stage, have 1x1 convolutions in the MLP."""
    dense = {name: dense_kernel(tensor) if name.endswith(".kernel") else tensor for name, tensor in state.items()}
    pointwise = not has_keys(r"(encoder\.)?stages\.0\.2\.")(state)
    return {name: shaped(name, tensor, pointwise) for name, tensor in rename_keys(dense, CONVNEXT).items()}


def dense_kernel(kernel: Tensor) -> Tensor:
    """A flat kernel, (area, in_chs, chs) or depthwise (area, chs), as (chs, in_chs or 1, side, side).

    The flat index is column-major.
    """
    side = isqrt(kernel.shape[0]) if kernel.ndim in (2, 3) else 0
    if not side or side * side != kernel.shape[0]:
        return kernel  # loading then reports the shape
    flat = kernel.permute(2, 1, 0) if kernel.ndim == 3 else kernel.T.unsqueeze(1)
    return flat.unflatten(-1, (side, side)).transpose(-1, -2).contiguous()


def shaped(name: str, tensor: Tensor, pointwise: bool) -> Tensor:
    """Remove the leading axes of length 1 from norms and biases; make linear layers 1x1 convolutions if `pointwise`."""
    if name.endswith(".bias") or ".grn." in name:
        return tensor.flatten()
    if pointwise and re.search(r"\.mlp\.fc[12]\.weight$", name):
        return tensor[..., None, None]
    return tensor


def convnext_from_native(state: State) -> StateDict:
    return {name: unshaped(name, tensor) for name, tensor in rename_keys(state, TO_CONVNEXT).items()}


def unshaped(name: str, tensor: Tensor) -> Tensor:
    if ".grn." in name:
        return tensor.view(1, 1, 1, -1)
    return tensor.flatten(1) if re.search(r"\.pwconv[12]\.weight$", name) else tensor


DINOV2: tuple[Rule, ...] = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
)
PREFIX = {"cls_token", "reg_token", "pos_embed"}


def dinov2_to_native(state: State, _names: Collection[str]) -> StateDict:
    return without_class_position(rename_keys(state, DINOV2))


def without_class_position(state: StateDict) -> StateDict:
    """With registers, add the position of the class token to the class token."""
    if not state.keys() >= PREFIX:
        return state
    positions, token = state["pos_embed"], state["cls_token"]
    if not positions.ndim == token.ndim == 3 or token.shape[2] != positions.shape[2]:
        return state  # loading then reports the shape
    return {**state, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}


def with_class_position(state: StateDict) -> StateDict:
    """With registers, add a position of zeros for the class token: the inverse of `without_class_position`."""
    if not state.keys() >= PREFIX:
        return state
    return {**state, "pos_embed": torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)}


def dinov2_from_native(state: State) -> StateDict:
    """Convert to the names on torch.hub, where blocks are not grouped; tensors that the model lacks are zero."""
    gated = any(state[name].shape[1] * 2 == state[name.replace("fc2", "fc1")].shape[0] for name in linear_names(state))
    rules: list[Rule] = [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")] if gated else []
    new = rename_keys(with_class_position(dict(state)), [*rules, (r"^reg_token$", "register_tokens")])
    return {**new, "mask_token": torch.zeros_like(state["cls_token"][0])}


def linear_names(state: State) -> list[str]:
    """Names of the weights of the second MLP layers."""
    return [name for name in state if name.endswith(".mlp.fc2.weight")]


def deit3_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, [(r"\.gamma_([12])$", r".ls\1.gamma")])


def deit3_from_native(state: State) -> StateDict:
    return rename_keys(state, [(r"\.ls([12])\.gamma$", r".gamma_\1")])


def unchanged(state: State, _names: Collection[str]) -> StateDict:
    return dict(state)


# Names that only DINOv2 has; one match is enough.
DINOV2_MARKS = tuple(
    map(
        has_keys,
        (r"mask_token$", r"register_tokens$", r"blocks\.\d+\.\d+\.ls1\.", r"blocks\.(0\.)?0\.mlp\.w12\.weight$"),
    )
)
has_layer_scale = has_keys(r"cls_token$", r"pos_embed$", r"patch_embed\.proj\.weight$", r"blocks\.(0\.)?0\.ls1\.gamma$")


def is_dinov2(state: State) -> bool:
    return has_layer_scale(state) and any(has_mark(state) for has_mark in DINOV2_MARKS)


def has_registers(state: State) -> bool:
    return is_dinov2(state) and "register_tokens" in state


def has_no_registers(state: State) -> bool:
    return is_dinov2(state) and "register_tokens" not in state


MASK = {r"mask_token$": "mask token of pretraining"}
LAYOUTS = (
    Layout(
        "facebook",
        "ConvNeXt",
        has_keys(
            r"(encoder\.)?downsample_layers\.0\.0\.weight$",
            r"(encoder\.)?stages\.0\.0\.dwconv\.(weight|kernel)$",
            r"(encoder\.)?stages\.0\.0\.norm\.(ln\.)?weight$",
            r"(encoder\.)?stages\.0\.0\.pwconv1\.(linear\.)?weight$",
        ),
        convnext_to_native,
        convnext_from_native,
        ignores={
            r"mask_token$|(proj|decoder|pred)\.": "decoder of masked pretraining",
            r"norms\.": "norms of intermediate maps, and a copy of the last norm",
            r"projectors\.": "projectors of distillation",
        },
    ),
    Layout(
        "dinov2",
        "ViT",
        has_no_registers,
        dinov2_to_native,
        dinov2_from_native,
        ignores=MASK,
        settings={"antialias": False, "position_excess": 0.1},
        data=IMAGENET,
    ),
    Layout(
        "dinov2",
        "ViT",
        has_registers,
        dinov2_to_native,
        dinov2_from_native,
        ignores=MASK,
        data=IMAGENET,
        notes=("the class token's position is added to the token",),
    ),
    Layout(
        "deit3",
        "ViT",
        has_keys(r"cls_token$", r"pos_embed$", r"blocks\.0\.attn\.qkv\.weight$", r"blocks\.0\.gamma_1$"),
        deit3_to_native,
        deit3_from_native,
        data=IMAGENET,
    ),
    Layout(
        "mae",
        "ViT",
        has_keys(r"cls_token$", r"decoder_embed\.weight$", r"decoder_pred\.weight$", r"blocks\.0\.attn\.qkv\.weight$"),
        unchanged,
        ignores={r"mask_token$|decoder_": "decoder of masked pretraining"},
        data=IMAGENET,
    ),
    Layout(
        "swav",
        "ResNet",
        has_keys(
            r"conv1\.weight$",
            r"layer4\.0\.conv2\.weight$",
            r"projection_head\.",
            r"prototypes\.(prototypes0\.)?weight$",
        ),
        unchanged,
        ignores={r"(projection_head|prototypes)\.": "head of self-supervised training"},
        data=IMAGENET,
    ),
)
