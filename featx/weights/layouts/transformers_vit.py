"""Layouts of transformers' ViT, DINOv2 and BLIP image encoder (models/vit, dinov2, dinov2_with_registers and blip).

Published files use the names of transformers' first versions, although its layers were renamed later: both are read,
the first are written. Query, key and value are separate layers in all but BLIP.
"""

from collections.abc import Collection, Mapping
from functools import partial

import torch

from ...errors import CheckpointError
from ...preprocessing import CLIP, IMAGENET
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import Rule, State, StateDict, rename_keys
from .facebook import with_class_position, without_class_position
from .transformers import to_transformers

GATED = ("gate", "value")
FROM_VIT: tuple[Rule, ...] = (
    (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.attention\.(q|k|v)\w+\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.gate_proj\.", ".mlp.gate."),
    (r"\.mlp\.up_proj\.", ".mlp.value."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
TO_COMMON: tuple[Rule, ...] = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^norm\.", "layernorm."),
)
TO_VIT: tuple[Rule, ...] = (
    *TO_COMMON,
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^head\.", "classifier."),
)
TO_DINOV2: tuple[Rule, ...] = (
    *TO_COMMON,
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
)
TO_GATED: tuple[Rule, ...] = ((r"\.mlp\.fc1\.", ".mlp.weights_in."), (r"\.mlp\.fc2\.", ".mlp.weights_out."))


def known(embeddings: str, inside_layer: str) -> str:
    """Pattern of the names of the embeddings, of the last norm, and inside a layer."""
    common = r"embeddings\.(cls_token|position_embeddings|patch_embeddings\.projection\.)|layernorm\."
    return rf"{common}|embeddings\.({embeddings})$|encoder\.layer\.\d+\.({inside_layer})\."


VIT_NAMES = known("", r"attention|intermediate|output|layernorm_before|layernorm_after")
DINOV2_NAMES = known("mask_token|register_tokens", r"attention|mlp|norm1|norm2|layer_scale1|layer_scale2")
BLIP: tuple[Rule, ...] = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"^post_layernorm\.", "norm."),
)
TO_BLIP: tuple[Rule, ...] = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
)
CLASS_TOKEN = {"cls_token": "a class token"}
BLIP_NAMES = (
    r"embeddings\.(class_embedding|position_embedding|patch_embedding\.)|post_layernorm\."
    r"|encoder\.layers\.\d+\.(self_attn|mlp|layer_norm1|layer_norm2)\."
)


def vit_to_native(state: State, _names: Collection[str]) -> StateDict:
    return fuse_projections(rename_keys(state, FROM_VIT))


def vit_from_native(state: State) -> StateDict:
    """Convert to transformers' names; CheckpointError also for a model without a class token."""
    require(state, "vit", CLASS_TOKEN)
    return to_transformers(split_projections(state), TO_VIT, VIT_NAMES, "vit")


def dinov2_to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert to native names; with registers, the position of the class token is added to that token."""
    return without_class_position(fuse_projections(fuse_projections(rename_keys(state, FROM_VIT)), GATED, "fc1"))


def dinov2_from_native(state: State) -> StateDict:
    """Convert to transformers' names, with a mask token of zeros.

    Raises:
        CheckpointError: the model has a classifier, or lacks a class token or layer scale.
    """
    require(state, "dinov2", CLASS_TOKEN | {"blocks.0.ls1.gamma": "layer scale"})
    if any(name.startswith("head.") for name in state):
        raise CheckpointError(
            "transformers' dinov2 classifies the class token and the mean of the patches together, and this model one "
            "of them: convert it with num_classes=0"
        )
    new = split_projections(with_class_position(dict(state)))
    new["embeddings.mask_token"] = torch.zeros_like(state["cls_token"][0])
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    return to_transformers(new, (*TO_DINOV2, *TO_GATED) if gated else TO_DINOV2, DINOV2_NAMES, "dinov2")


def require(state: State, prefix: str, tensors: Mapping[str, str]) -> None:
    """Raise CheckpointError unless `state` has these tensors. tensors: a description for the message by name."""
    missing = [description for name, description in tensors.items() if name not in state]
    if missing:
        raise CheckpointError(f"transformers' {prefix} has {' and '.join(missing)}, unlike this model")


def blip_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, BLIP)


def blip_from_native(state: State) -> StateDict:
    """Convert to the names of the image encoder; CheckpointError for a classifier or a missing class token."""
    require(state, "blip", CLASS_TOKEN)
    return to_transformers(state, TO_BLIP, BLIP_NAMES, "blip_vision_model")


def is_vit(state: State) -> bool:
    """Whether the names are those of ViT; DeiT, which adds a distillation token, is not supported."""
    vit = has_keys(
        r"(vit\.)?embeddings\.cls_token$",
        r"(vit\.)?embeddings\.position_embeddings$",
        r"(vit\.)?(encoder\.layer|layers)\.0\.layernorm_before\.weight",
        r"(vit\.)?(encoder\.layer|layers)\.0\.attention\.(attention\.query|q_proj)\.weight",
    )
    return vit(state) and not has_keys(r"embeddings\.distillation_token$")(state)


def is_dinov2(state: State, *, registers: bool) -> bool:
    prefix = r"(dinov2\.|dinov2_with_registers\.)?"
    dinov2 = has_keys(
        rf"{prefix}embeddings\.patch_embeddings\.projection\.weight",
        rf"{prefix}encoder\.layer\.0\.layer_scale1\.lambda1$",
    )
    return dinov2(state) and has_keys(rf"{prefix}embeddings\.register_tokens$")(state) == registers


PRETRAINING = {
    r"(vit\.|dinov2\.|dinov2_with_registers\.)?embeddings\.mask_token$": "mask token of pretraining",
    r"decoder\.": "decoder of masked pretraining",
    r"(vit\.)?pooler\.": "pooling layer, which no classifier uses",
}
TWICE = {r"classifier\.": "classifier of class token and mean of the patches together"}
NOT_VISION = {
    r"text_|logit_scale$|itm_head\.": "language model",
    r"(visual_projection|vision_proj)\.": "projection to the joint image-text space",
}
POSITIONS = "positions are resized without antialiasing (antialias=False)"

LAYOUTS = (
    Layout(
        "transformers",
        "ViT",
        is_vit,
        vit_to_native,
        vit_from_native,
        ignores=PRETRAINING,
        settings={"norm_eps": 1e-12, "antialias": False},
        notes=("norms add 1e-12 to the variance", POSITIONS),
    ),
    Layout(
        "transformers-dinov2",
        "ViT",
        partial(is_dinov2, registers=False),
        dinov2_to_native,
        dinov2_from_native,
        ignores=PRETRAINING | TWICE,
        settings={"antialias": False},
        data=IMAGENET,
        notes=(POSITIONS,),
    ),
    Layout(
        "transformers-dinov2_with_registers",
        "ViT",
        partial(is_dinov2, registers=True),
        dinov2_to_native,
        dinov2_from_native,
        ignores=PRETRAINING | TWICE,
        data=IMAGENET,
        notes=("position of the class token added to that token",),
    ),
    Layout(
        "transformers-blip",
        "ViT",
        has_keys(
            r"(vision_model\.)?embeddings\.class_embedding$",
            r"(vision_model\.)?encoder\.layers\.0\.self_attn\.qkv\.weight",
            r"(vision_model\.)?post_layernorm\.weight",
        ),
        blip_to_native,
        blip_from_native,
        ignores=NOT_VISION,
        settings={"norm_eps": 1e-5, "antialias": False},
        data=CLIP,
        notes=("norms add 1e-5 to the variance, where BLIP itself adds 1e-6", POSITIONS),
    ),
)
