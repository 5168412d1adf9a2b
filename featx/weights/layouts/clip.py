"""Layouts of the image towers of CLIP: OpenAI's and OpenCLIP's names (https://github.com/openai/CLIP), transformers'.

The projection to the space of texts becomes the classifier, with a bias of zeros. OpenAI's weights need QuickGELU,
those of most other authors GELU. The names do not tell which: `quick_gelu=True` of `create_model` does.
"""

from collections.abc import Callable, Collection, Iterable

import torch

from ...errors import CheckpointError
from ...models.layers.transformer import TanhGELU, TransformerStyle
from ...preprocessing import CLIP, INCEPTION
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import Rule, State, StateDict, rename_keys

FROM_OPENAI: tuple[Rule, ...] = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^proj$", "head.weight"),
)
TO_OPENAI: tuple[Rule, ...] = (
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"^head\.weight$", "proj"),
)
FROM_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
    (r"^visual_projection\.", "head."),
)
TO_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^norm_pre\.", "vision_model.pre_layrnorm."),
    (r"^norm\.", "vision_model.post_layernorm."),
    (r"^blocks\.", "vision_model.encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
    (r"\.attn\.(q|k|v)\.", r".self_attn.\1_proj."),
    (r"^head\.", "visual_projection."),
)


def with_axes(state: State, transposed: bool) -> StateDict:
    """Native shapes: batch axes before the class token and the positions; a classifier with a bias of zeros.

    transposed: whether the projection is (chs, classes), as OpenAI stores it.
    """
    new = dict(state)
    for name, ndim in (("cls_token", 3), ("pos_embed", 3)):
        if name in new and new[name].ndim < ndim:
            new[name] = new[name].reshape(*[1] * (ndim - new[name].ndim), *new[name].shape)
    head = new.get("head.weight")
    if head is not None and head.ndim == 2:
        new["head.weight"] = head.T.contiguous() if transposed else head
        new["head.bias"] = torch.zeros(len(new["head.weight"]), dtype=head.dtype)
    return new


def without_axes(state: State, transposed: bool) -> StateDict:
    """The inverse of `with_axes`; the bias of the classifier, which CLIP lacks, is left out."""
    new = {name: tensor for name, tensor in state.items() if name != "head.bias"}
    if "head.weight" in new and transposed:
        new["head.weight"] = new["head.weight"].T.contiguous()
    return {**new, "cls_token": new["cls_token"].flatten(), "pos_embed": new["pos_embed"].squeeze(0)}


def openai_to_native(state: State, _names: Collection[str]) -> StateDict:
    return with_axes(rename_keys(state, FROM_OPENAI), transposed=True)


def openai_from_native(state: State) -> StateDict:
    return rename_keys(without_axes(state, transposed=True), TO_OPENAI)


def transformers_to_native(state: State, _names: Collection[str]) -> StateDict:
    return with_axes(fuse_projections(rename_keys(state, FROM_TRANSFORMERS)), transposed=False)


def transformers_from_native(state: State) -> StateDict:
    return rename_keys(split_projections(without_axes(state, transposed=False)), TO_TRANSFORMERS)


def clip_only(convert: Callable[[State], StateDict], needed: Iterable[str]) -> Callable[[State], StateDict]:
    """The conversion, which raises CheckpointError for ViTs without CLIP's class token or norm before the blocks."""

    def checked(state: State) -> StateDict:
        if missing := [name for name in needed if name not in state]:
            raise CheckpointError(f"CLIP's image towers have {', '.join(missing)}, unlike this model")
        return convert(state)

    return checked


NEEDED = ("cls_token", "norm_pre.weight", "norm.weight")
TEXT = "language model"
GELU = "the activation is GELU unless create_model(..., quick_gelu=True), which OpenAI's own weights need"

# transformers has no other name for SigLIP's encoder, without class token and norm before the blocks
has_siglip_names = has_keys(
    r"(vision_model\.)?embeddings\.patch_embedding\.bias$",
    r"(vision_model\.)?embeddings\.position_embedding\.weight$",
    r"(vision_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight$",
)
has_class_token = has_keys(r"(vision_model\.)?embeddings\.class_embedding$")


def is_siglip(state: State) -> bool:
    return has_siglip_names(state) and not has_class_token(state)


def siglip_from_native(state: State) -> StateDict:
    """Convert to transformers' names without its attention pool; CheckpointError for ViTs with a class token."""
    if "cls_token" in state or "norm.weight" not in state:
        raise CheckpointError(
            "SigLIP's image towers have no class token, and a norm before the pool, unlike this model"
        )
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    positions = {"pos_embed": state["pos_embed"].squeeze(0)}
    return rename_keys(split_projections({**state, **positions}), TO_TRANSFORMERS)


LAYOUTS = (
    Layout(
        "openai-clip",
        "ViT",
        has_keys(
            r"class_embedding$",
            r"positional_embedding$",
            r"conv1\.weight$",
            r"ln_pre\.weight$",
            r"transformer\.resblocks\.0\.attn\.in_proj_weight$",
        ),
        openai_to_native,
        clip_only(openai_from_native, NEEDED),
        data=CLIP,
        notes=(GELU,),
    ),
    Layout(
        "transformers-clip",
        "ViT",
        has_keys(
            r"(vision_model\.)?embeddings\.class_embedding$",
            r"(vision_model\.)?pre_layrnorm\.weight$",
            r"(vision_model\.)?encoder\.layers\.0\.self_attn\.q_proj\.weight$",
        ),
        transformers_to_native,
        clip_only(transformers_from_native, NEEDED),
        ignores={
            r"text_model\.|text_projection\.|logit_scale$": TEXT,
            r"(vision_model\.)?embeddings\.position_ids$": "numbers of the positions",
        },
        data=CLIP,
        notes=(GELU,),
    ),
    Layout(
        "transformers-siglip",
        "ViT",
        is_siglip,
        transformers_to_native,
        siglip_from_native,
        ignores={
            r"text_model\.|logit_(scale|bias)$": TEXT,
            r"(vision_model\.)?head\.": "attention pool: native models average the patches",
        },
        settings={"style": TransformerStyle(act=TanhGELU)},
        data=INCEPTION,
        notes=("GELU is approximated by tanh",),
    ),
)
