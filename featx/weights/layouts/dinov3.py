"""Layouts of DINOv3 (https://arxiv.org/abs/2508.10104): Meta's ViTs, and transformers' dinov3_vit and dinov3_convnext.

Queries and values have biases, keys have none. Biases that are all zero, as in most published weights, are left out of
a model without them. Meta's ConvNeXts have the names of the layout "facebook".
"""

import re
from collections.abc import Collection

import torch

from ...errors import CheckpointError
from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import Rule, State, StateDict, rename_keys
from .transformers import to_transformers

META: tuple[Rule, ...] = (
    (r"^storage_tokens$", "reg_token"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
FROM_VIT: tuple[Rule, ...] = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.(q|k|v)_proj\.weight$", r".attn.\1.weight"),
    (r"\.attention\.(q|k|v)_proj\.bias$", r".attn.\1_bias"),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
TO_VIT: tuple[Rule, ...] = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "layer."),
    (r"\.attn\.(q|k|v)\.weight$", r".attention.\1_proj.weight"),
    (r"\.attn\.(q|k|v)_bias$", r".attention.\1_proj.bias"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.gamma_(\d)$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
    (r"\.mlp\.(fc1_x|fc1)\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
)
VIT_NAMES = (
    r"embeddings\.(cls_token|register_tokens|mask_token|patch_embeddings\.(weight|bias))$|norm\."
    r"|layer\.\d+\.(attention\.[qkvo]_proj|mlp\.(gate|up|down)_proj|norm1|norm2|layer_scale1|layer_scale2)\."
)
FROM_CONVNEXT: tuple[Rule, ...] = (
    (r"^(model\.)?stages\.0\.downsample_layers\.", "stem."),
    (r"^(model\.)?stages\.(\d+)\.downsample_layers\.", r"stages.\2.downsample."),
    (r"^(model\.)?stages\.(\d+)\.layers\.", r"stages.\2.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
    (r"\.layer_norm\.", ".norm."),
    (r"^layer_norm\.", "head.norm."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.", "stages.0.downsample_layers."),
    (r"^stages\.(\d+)\.downsample\.", r"stages.\1.downsample_layers."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1.layers."),
    (r"\.conv_dw\.", ".depthwise_conv."),
    (r"\.mlp\.fc(\d)\.", r".pointwise_conv\1."),
    (r"(\.layers\.\d+)\.norm\.", r"\1.layer_norm."),
    (r"^head\.norm\.", "layer_norm."),
)
CONVNEXT_NAMES = r"stages\.\d\.(downsample_layers|layers)\.|layer_norm\."
BIAS = r"\.attn\.[qv]_bias$"


def meta_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert to native names. The bias of the keys, which a mask sets to zero, is left out."""
    new: StateDict = {}
    for name, tensor in rename_keys(state, META).items():
        if name.endswith(".attn.qkv.bias") and tensor.ndim == 1 and len(tensor) % 3 == 0:
            block = name.removesuffix("qkv.bias")
            new[f"{block}q_bias"], _, new[f"{block}v_bias"] = (part.clone() for part in tensor.chunk(3))
        elif not name.endswith(".attn.qkv.bias_mask"):
            new[name] = tensor
    return without_zero_biases(new, names)


def vit_to_native(state: State, names: Collection[str]) -> StateDict:
    new = rename_keys(state, FROM_VIT)
    gated = any(name.endswith(".mlp.fc1_g.weight") for name in new)
    new = rename_keys(new, [(r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1.")])
    return without_zero_biases(fuse_projections(new), names)


def vit_from_native(state: State) -> StateDict:
    """Convert to transformers' names; biases that the model lacks are zero, and so is the mask token.

    Raises:
        CheckpointError: the model has a classifier or other layers, or lacks a class token, registers or layer scale.
    """
    lacking = [name for name in ("cls_token", "reg_token", "blocks.0.gamma_1") if name not in state]
    if lacking:
        raise CheckpointError(f"transformers' dinov3_vit has {' and '.join(lacking)}, unlike this model")
    new = split_projections(state)
    for name, tensor in state.items():
        if name.endswith(".attn.proj.bias"):
            block = name.removesuffix("proj.bias")
            new = {f"{block}{part}_bias": torch.zeros_like(tensor) for part in ("q", "v")} | new
    new["embeddings.mask_token"] = torch.zeros_like(state["cls_token"])
    return to_transformers(new, TO_VIT, VIT_NAMES, "dinov3_vit")


def without_zero_biases(state: StateDict, names: Collection[str]) -> StateDict:
    """Leave out the biases of queries and values if all are zero, except those that the model has."""
    biases = {name: tensor for name, tensor in state.items() if re.search(BIAS, name)}
    if any(tensor.any() for tensor in biases.values()):
        return state
    return {name: tensor for name, tensor in state.items() if name not in biases or name in names}


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, FROM_CONVNEXT)


def convnext_from_native(state: State) -> StateDict:
    """Convert to transformers' names; CheckpointError for a classifier, or layers that DINOv3 does not have."""
    new = {
        name: tensor.flatten(1) if re.search(r"\.mlp\.fc\d\.weight$", name) else tensor
        for name, tensor in state.items()
    }
    return to_transformers(new, TO_CONVNEXT, CONVNEXT_NAMES, "dinov3_convnext")


MASK = {r"(embeddings\.)?mask_token$": "mask token of pretraining"}
LAYOUTS = (
    Layout(
        "dinov3",
        "RotaryViT",
        has_keys(r"storage_tokens$", r"patch_embed\.proj\.weight$", r"blocks\.0\.ls1\.gamma$"),
        meta_to_native,
        ignores=MASK
        | {
            r"rope_embed\.periods$": "wavelengths, which are computed",
            r"local_cls_norm\.": "norm of the class token of local crops in pretraining",
            r"projectors\.": "projectors of distillation",
        },
        data=IMAGENET,
        notes=("biases of keys left out, which are zero",),
    ),
    Layout(
        "transformers-dinov3_vit",
        "RotaryViT",
        has_keys(
            r"embeddings\.register_tokens$",
            r"(model\.)?layer\.0\.attention\.q_proj\.weight$",
            r"(model\.)?layer\.0\.layer_scale1\.lambda1$",
        ),
        vit_to_native,
        vit_from_native,
        ignores=MASK,
    ),
    Layout(
        "transformers-dinov3_convnext",
        "ConvNeXt",
        has_keys(
            r"(model\.)?stages\.0\.downsample_layers\.0\.weight$",
            r"(model\.)?stages\.0\.layers\.0\.depthwise_conv\.weight$",
        ),
        convnext_to_native,
        convnext_from_native,
    ),
)
