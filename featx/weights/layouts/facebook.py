"""Names of ConvNeXt and ConvNeXt V2, and of ViTs, in the repositories of facebookresearch and in files built on them.

The encoder that ConvNeXt V2 pretrains under masks computes with MinkowskiEngine, which wraps layers and flattens
kernels. DINOv3 and EUPE list their last norm twice, or bring the projectors of distillation along.

DeiT's, DINO's and MAE's published ViTs have the names that ours have. DINOv2 may group blocks in chunks, and gives the
class token a position even where it has registers, which have none: there the position is added to the token. DeiT III
scales its layers under names of its own.
"""

import re
from collections.abc import Collection
from math import isqrt

import torch
from torch import Tensor

from ...preprocessing import IMAGENET
from ..layout import Layout, has
from ..state_dict_keys import Rule, State, StateDict, renamed

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
    """Small variants, which have two blocks in their first stage, mix channels by 1x1 convolutions here."""
    dense = {name: dense_kernel(tensor) if name.endswith(".kernel") else tensor for name, tensor in state.items()}
    pointwise = not has(r"(encoder\.)?stages\.0\.2\.")(state)
    return {name: shaped(name, tensor, pointwise) for name, tensor in renamed(dense, CONVNEXT).items()}


def dense_kernel(kernel: Tensor) -> Tensor:
    """A flat kernel, (area, in_chs, chs) or depthwise (area, chs), as (chs, in_chs or 1, side, side).

    The flat index runs down the columns of the window.
    """
    side = isqrt(kernel.shape[0]) if kernel.ndim in (2, 3) else 0
    if not side or side * side != kernel.shape[0]:
        return kernel  # which fits no model
    flat = kernel.permute(2, 1, 0) if kernel.ndim == 3 else kernel.T.unsqueeze(1)
    return flat.unflatten(-1, (side, side)).transpose(-1, -2).contiguous()


def shaped(name: str, tensor: Tensor, pointwise: bool) -> Tensor:
    """Norms and biases come with leading axes of one cell."""
    if name.endswith(".bias") or ".grn." in name:
        return tensor.flatten()
    if pointwise and re.search(r"\.mlp\.fc[12]\.weight$", name):
        return tensor[..., None, None]
    return tensor


def convnext_from_native(state: State) -> StateDict:
    return {name: unshaped(name, tensor) for name, tensor in renamed(state, TO_CONVNEXT).items()}


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
    return without_class_position(renamed(state, DINOV2))


def without_class_position(state: StateDict) -> StateDict:
    """Where there are registers, the class token's position added to that token."""
    if not state.keys() >= PREFIX:
        return state
    positions, token = state["pos_embed"], state["cls_token"]
    if not positions.ndim == token.ndim == 3 or token.shape[2] != positions.shape[2]:
        return state  # which fits no model
    return {**state, "cls_token": token + positions[:, :1], "pos_embed": positions[:, 1:]}


def with_class_position(state: StateDict) -> StateDict:
    """The way back: where there are registers, a position of zeros for the class token."""
    if not state.keys() >= PREFIX:
        return state
    return {**state, "pos_embed": torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)}


def dinov2_from_native(state: State) -> StateDict:
    """As its hub saves it: blocks are not grouped. What is not in the model is zero."""
    gated = any(state[name].shape[1] * 2 == state[name.replace("fc2", "fc1")].shape[0] for name in linear_names(state))
    rules: list[Rule] = [(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")] if gated else []
    new = renamed(with_class_position(dict(state)), [*rules, (r"^reg_token$", "register_tokens")])
    return {**new, "mask_token": torch.zeros_like(state["cls_token"][0])}


def linear_names(state: State) -> list[str]:
    """Names of the weights of the perceptrons' second layers."""
    return [name for name in state if name.endswith(".mlp.fc2.weight")]


def deit3_to_native(state: State, _names: Collection[str]) -> StateDict:
    return renamed(state, [(r"\.gamma_([12])$", r".ls\1.gamma")])


def deit3_from_native(state: State) -> StateDict:
    return renamed(state, [(r"\.ls([12])\.gamma$", r".gamma_\1")])


def mae_to_native(state: State, _names: Collection[str]) -> StateDict:
    return dict(state)


# What DINOv2 alone has; any of them will do.
DINOV2_MARKS = tuple(
    map(has, (r"mask_token$", r"register_tokens$", r"blocks\.\d+\.\d+\.ls1\.", r"blocks\.(0\.)?0\.mlp\.w12\.weight$"))
)
scales_layers = has(r"cls_token$", r"pos_embed$", r"patch_embed\.proj\.weight$", r"blocks\.(0\.)?0\.ls1\.gamma$")


def is_dinov2(state: State) -> bool:
    return scales_layers(state) and any(marked(state) for marked in DINOV2_MARKS)


def has_registers(state: State) -> bool:
    return is_dinov2(state) and "register_tokens" in state


def has_no_registers(state: State) -> bool:
    return is_dinov2(state) and "register_tokens" not in state


MASK = {r"mask_token$": "mask token of pretraining"}
LAYOUTS = (
    Layout(
        "facebook",
        "ConvNeXt",
        has(
            r"(encoder\.)?downsample_layers\.0\.0\.weight$",
            r"(encoder\.)?stages\.0\.0\.dwconv\.(weight|kernel)$",
            r"(encoder\.)?stages\.0\.0\.norm\.(ln\.)?weight$",
            r"(encoder\.)?stages\.0\.0\.pwconv1\.(linear\.)?weight$",
        ),
        convnext_to_native,
        convnext_from_native,
        ignores={
            r"mask_token$|(proj|decoder|pred)\.": "decoder of masked pretraining",
            r"norms\.": "norms of intermediate maps, and the last norm once more",
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
        has(r"cls_token$", r"pos_embed$", r"blocks\.0\.attn\.qkv\.weight$", r"blocks\.0\.gamma_1$"),
        deit3_to_native,
        deit3_from_native,
        data=IMAGENET,
    ),
    Layout(
        "mae",
        "ViT",
        has(r"cls_token$", r"decoder_embed\.weight$", r"decoder_pred\.weight$", r"blocks\.0\.attn\.qkv\.weight$"),
        mae_to_native,
        ignores={r"mask_token$|decoder_": "decoder of masked pretraining"},
        data=IMAGENET,
    ),
)
