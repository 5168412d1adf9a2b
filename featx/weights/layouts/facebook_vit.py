"""Names of ViTs in facebookresearch/dinov2, facebookresearch/deit (DeiT III) and facebookresearch/mae.

DeiT's, DINO's and MAE's published encoders have the names that ours have. DINOv2 may group blocks in chunks, and gives
the class token a position even where it has registers, which have none: there the position is added to the token.
"""

from collections.abc import Collection

import torch

from ...preprocessing import IMAGENET
from ..layout import Layout, has
from ..names import Rule, renamed
from ..state import State, StateDict

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
