"""Layouts of the image towers of CLIP and SigLIP: OpenAI's and OpenCLIP's names, and those of transformers.

A file of a whole model holds text tensors too. OpenAI's models, MetaCLIP's and DFN's compute QuickGELU in their MLPs,
most of OpenCLIP's compute GELU, and neither names nor shapes tell which: both layouts recognize such a file, so that
loading asks for layout=. Only the archive that OpenAI published is certain, by three numbers that it holds beside the
weights. The projection to the joint space is the classifier, without bias, as in timm's conversion.

SigLIP has no class token. Its pool by attention is not a part of our ViT: maps and tokens are those of SigLIP.
"""

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial

from ...errors import CheckpointError, names_in
from ...models.layers.transformer import TANH_GELU, QuickGELU, TransformerStyle
from ...preprocessing import CLIP, INCEPTION
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import Rule, State, StateDict, rename_keys

OPENAI: tuple[Rule, ...] = (
    (r"^visual\.", ""),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^proj$", "head.weight"),
)
TO_OPENAI: tuple[Rule, ...] = (
    (r"^head\.weight$", "proj"),
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
OPENAI_NAMES = (
    r"(class_embedding|positional_embedding|proj|conv1\.weight)$|ln_(pre|post)\."
    r"|transformer\.resblocks\.\d+\.(ln_[12]\.|attn\.(in_proj_|out_proj\.)|mlp\.(c_fc|c_proj)\.)"
)
TRANSFORMERS: tuple[Rule, ...] = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^visual_projection\.", "head."),
)
TO_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^head\.", "visual_projection."),
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm_pre\.", "pre_layrnorm."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.([qkv])\.", r".self_attn.\1_proj."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.norm([12])\.", r".layer_norm\1."),
)
TRANSFORMERS_NAMES = (
    r"embeddings\.(class_embedding$|position_embedding\.weight$|patch_embedding\.weight$)|visual_projection\.weight$"
    r"|(pre_layrnorm|post_layernorm)\."
    r"|encoder\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)\.|layer_norm[12]\.|mlp\.fc[12]\.)"
)


def with_axes(state: StateDict) -> StateDict:
    """With the batch axes of class token and positions, and a classifier bias of zeros for a projection."""
    new = dict(state)
    for name, ndim in (("cls_token", 1), ("pos_embed", 2)):
        if name in new and new[name].ndim == ndim:
            new[name] = new[name][(None,) * (3 - ndim)]
    if "head.weight" in new and new["head.weight"].ndim:
        new["head.bias"] = new["head.weight"].new_zeros(new["head.weight"].shape[0])
    return new


def without_axes(state: State) -> StateDict:
    """The inverse of `with_axes`; CheckpointError for a classifier whose bias is not zero."""
    bias = state.get("head.bias")
    if bias is not None and bias.any():
        raise CheckpointError("CLIP projects without a bias, and this classifier has one: convert with num_classes=0")
    new = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    if "cls_token" in new:
        new |= {"cls_token": new["cls_token"].flatten(), "pos_embed": new["pos_embed"].squeeze(0)}
    return new


def require_known(state: StateDict, known: str) -> StateDict:
    """The tensors; CheckpointError that lists those that CLIP's image tower does not have."""
    marks = ("class_embedding", "embeddings.class_embedding")
    if unsupported := [name for name in state if not re.match(known, name)]:
        raise CheckpointError(
            f"CLIP's image tower has no place for {len(unsupported)} of {len(state)} tensors, so that it cannot hold "
            f"this model: {names_in(unsupported)}"
        )
    if not any(mark in state for mark in marks):
        raise CheckpointError("CLIP's image tower has a class token, unlike this model")
    return state


def openai_to_native(state: State, _names: Collection[str]) -> StateDict:
    new = rename_keys(state, OPENAI)
    if "head.weight" in new and new["head.weight"].ndim == 2:
        new["head.weight"] = new["head.weight"].T
    return with_axes(new)


def openai_from_native(state: State) -> StateDict:
    """Convert to OpenAI's names, with the prefix `visual.`; CheckpointError for what its image tower lacks."""
    new = require_known(rename_keys(without_axes(state), TO_OPENAI), OPENAI_NAMES)
    if "proj" in new:
        new["proj"] = new["proj"].T
    return {f"visual.{name}": tensor for name, tensor in new.items()}


def transformers_to_native(state: State, _names: Collection[str]) -> StateDict:
    return with_axes(fuse_projections(rename_keys(state, TRANSFORMERS)))


def transformers_from_native(state: State) -> StateDict:
    """Convert to the published names of transformers; CheckpointError for what its image tower lacks."""
    new = require_known(rename_keys(split_projections(without_axes(state)), TO_TRANSFORMERS), TRANSFORMERS_NAMES)
    outside = "visual_projection."
    return {name if name.startswith(outside) else f"vision_model.{name}": tensor for name, tensor in new.items()}


is_openai_model = has_keys(r"visual\.class_embedding$", r"visual\.transformer\.resblocks\.0\.attn\.in_proj_weight$")
is_openai_tower = has_keys(
    r"class_embedding$", r"conv1\.weight$", r"ln_pre\.weight$", r"transformer\.resblocks\.0\.attn\.in_proj_weight$"
)
is_archive = has_keys(r"input_resolution$", r"context_length$", r"vocab_size$")
TOWER = r"(vision_model\.)?"
is_transformers = has_keys(
    rf"{TOWER}embeddings\.class_embedding$",
    rf"{TOWER}pre_layrnorm\.weight$",
    rf"{TOWER}encoder\.layers\.0\.self_attn\.q_proj\.weight$",
)
has_siglip_names = has_keys(
    rf"{TOWER}embeddings\.position_embedding\.weight$",
    rf"{TOWER}embeddings\.patch_embedding\.bias$",
    rf"{TOWER}encoder\.layers\.0\.self_attn\.q_proj\.weight$",
    rf"{TOWER}post_layernorm\.weight$",
)
has_class_token = has_keys(rf"{TOWER}embeddings\.class_embedding$")


def is_siglip(state: State) -> bool:
    return has_siglip_names(state) and not has_class_token(state)


EXACT, QUICK = TransformerStyle(eps=1e-5), TransformerStyle(act=QuickGELU, eps=1e-5)
EXACT_NOTE = "MLPs compute GELU; OpenAI's, MetaCLIP's and DFN's weights need layout='{}'"
QUICK_NOTE = "MLPs compute QuickGELU"
PROJECTION = "the projection to the joint space is the classifier"
POSITIONS = "positions are resized without antialiasing (antialias=False)"
WHOLE = {r"(?!visual\.)": "language model"}
NOT_VISION = {
    r"text_|logit_(scale|bias)$": "language model",
    rf"{TOWER}embeddings\.position_ids$": "numbers of the positions",
}
ATTENTION_POOL = {rf"{TOWER}head\.": "pool by attention"}

OPENAI_LAYOUT = partial(Layout, family="ViT", to_native=openai_to_native, from_native=openai_from_native, data=CLIP)
TRANSFORMERS_LAYOUT = partial(
    Layout,
    family="ViT",
    to_native=transformers_to_native,
    from_native=transformers_from_native,
    ignores=NOT_VISION,
    data=CLIP,
)


def openai_layouts(recognizes: Callable[[State], bool], ignores: Mapping[str, str]) -> tuple[Layout, Layout]:
    """The layouts for GELU and for QuickGELU; both recognize the names, unless the archive says which."""
    return (
        OPENAI_LAYOUT(
            "clip",
            recognizes=lambda state: recognizes(state) and not is_archive(state),
            ignores=ignores,
            settings={"style": EXACT},
            notes=(EXACT_NOTE.format("clip-quickgelu"), PROJECTION),
        ),
        OPENAI_LAYOUT(
            "clip-quickgelu",
            recognizes=recognizes,
            ignores=ignores,
            settings={"style": QUICK},
            notes=(QUICK_NOTE, PROJECTION),
        ),
    )


LAYOUTS = (
    *openai_layouts(is_openai_model, WHOLE),
    *openai_layouts(is_openai_tower, {}),
    TRANSFORMERS_LAYOUT(
        "transformers-clip",
        recognizes=is_transformers,
        settings={"style": EXACT, "antialias": False},
        notes=(EXACT_NOTE.format("transformers-clip-quickgelu"), PROJECTION, POSITIONS),
    ),
    TRANSFORMERS_LAYOUT(
        "transformers-clip-quickgelu",
        recognizes=is_transformers,
        settings={"style": QUICK, "antialias": False},
        notes=(QUICK_NOTE, PROJECTION, POSITIONS),
    ),
    Layout(
        "transformers-siglip",
        "ViT",
        is_siglip,
        transformers_to_native,
        ignores=NOT_VISION | ATTENTION_POOL,
        settings={
            "class_token": False,
            "global_pool": "avg",
            "style": TransformerStyle(act=TANH_GELU),
            "antialias": False,
        },
        data=INCEPTION | {"crop": 1.0, "crop_mode": "squash"},
        notes=("without class token and attention pool", POSITIONS),
    ),
)
