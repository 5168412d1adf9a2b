"""Layout of the original Flax ViTs and hybrids in `.npz` files.

Names are paths in a parameter tree, with the prefix `opt/target/` in a training state. Kernels are (in, out) or
(height, width, in, out); attention kernels have an axis for the heads. Files older than Flax's linen store the norms of
convolutions as (1, 1, 1, C). https://github.com/google-research/vision_transformer
"""

import re
from collections.abc import Collection

from torch import Tensor

from ...errors import CheckpointError
from ..layout import Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import RenamePair, Rule, State, StateDict, forward_rules, inverse_rules, rename_keys

TRAINING = r"(?:opt/target/)?"
BLOCK, ATTENTION = "^Transformer/encoderblock_#/", "^Transformer/encoderblock_#/MultiHeadDotProductAttention_1/"
PAIRS: tuple[RenamePair, ...] = (
    ("^cls", "^cls_token"),
    ("^embedding/", "^patch_embed.proj."),
    ("^Transformer/posembed_input/pos_embedding", "^pos_embed"),
    ("^Transformer/encoder_norm/", "^norm."),
    (f"{BLOCK}LayerNorm_0/", "^blocks.#.norm1."),
    (f"{ATTENTION}qkv/", "^blocks.#.attn.qkv."),
    (f"{ATTENTION}out/", "^blocks.#.attn.proj."),
    (f"{BLOCK}LayerNorm_2/", "^blocks.#.norm2."),
    (f"{BLOCK}MlpBlock_3/Dense_0/", "^blocks.#.mlp.fc1."),
    (f"{BLOCK}MlpBlock_3/Dense_1/", "^blocks.#.mlp.fc2."),
    ("^pre_logits/", "^pre_logits.fc."),
    ("^head/", "^head."),
    ("^conv_root/", "^patch_embed.backbone.stem.conv."),
    ("^gn_root/", "^patch_embed.backbone.stem.norm."),
    ("/conv_proj/", "/downsample.conv."),
    ("/gn_proj/", "/downsample.norm."),
    ("/conv#/", "/conv#."),
    ("/gn#/", "/norm#."),
)
STAGES = "patch_embed.backbone.stages."
MIXED = ("query", "key", "value")

# Attention heads of the published widths; the tensors of a ViT do not determine the number of heads.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}


def _to_native(state: State, _: Collection[str]) -> StateDict:
    trained = rename_keys(state, [(f"^{TRAINING}", "")])
    state = fuse_projections({name: _as_torch(name, tensor) for name, tensor in trained.items()}, MIXED)
    stages = any(name.startswith("block1/") for name in state)
    table: list[Rule] = [
        *forward_rules(PAIRS),
        (r"^block(\d+)/unit(\d+)/", lambda m: f"{STAGES}{int(m[1]) - 1}.blocks.{int(m[2]) - 1}."),
        (r"(kernel|scale)$", "weight"),
        # the backbone of a hybrid without stages is the stem alone
        *([] if stages else [(r"^patch_embed\.backbone\.stem\.", "patch_embed.backbone.")]),
    ]
    return rename_keys(state, table)


def to_flax(state: State, heads: int) -> StateDict:
    """Convert a native ViT state dict to Flax's names and shapes.

    Args:
        state: the native state dict.
        heads: number of attention heads.

    Raises:
        CheckpointError: a tensor does not exist in the original ViTs.
    """
    table: list[Rule] = [
        (r"(^|\.)(norm\d?)\.weight$", r"\1\2.scale"),
        (r"\.weight$", ".kernel"),
        (r"^patch_embed\.backbone\.(conv|norm)\.", r"patch_embed.backbone.stem.\1."),
        (
            rf"^{re.escape(STAGES)}(\d+)\.blocks\.(\d+)\.",
            lambda m: f"block{int(m[1]) + 1}/unit{int(m[2]) + 1}/",
        ),
        *inverse_rules(PAIRS),
    ]
    flax = rename_keys(state, table)
    unsupported = [native for name, native in zip(flax, state, strict=True) if "." in name or name in state]
    if unsupported:
        raise CheckpointError(
            f"the original ViTs have no place for {unsupported[:5]}{' and more' if unsupported[5:] else ''}: Flax's "
            "names are for models without registers, layer scale and additional norms"
        )
    return {name: _as_flax(name, tensor, heads) for name, tensor in split_projections(flax, MIXED).items()}


def _from_native(state: State) -> StateDict:
    """Convert to Flax's names and shapes; CheckpointError if the width is not a published one."""
    width = state["norm.weight"].numel() if "norm.weight" in state else state["patch_embed.proj.weight"].shape[0]
    if width not in HEADS:
        raise CheckpointError(f"cannot tell the heads of a ViT {width} channels wide: expected one of {[*HEADS]}")
    return to_flax(state, HEADS[width])


def _as_torch(name: str, tensor: Tensor) -> Tensor:
    """A tensor in PyTorch's shape: kernels have the output axis first, scales and biases are vectors."""
    path, _, leaf = name.rpartition("/")
    if leaf in ("scale", "bias"):
        return tensor.flatten()
    if leaf != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    if tensor.ndim == 3:
        tensor = tensor.flatten(0, 1) if path.endswith("/out") else tensor.flatten(1)
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _as_flax(name: str, tensor: Tensor, heads: int) -> Tensor:
    """A tensor in Flax's shape: the inverse of `_as_torch`, except that scales stay vectors."""
    path, _, leaf = name.rpartition("/")
    mixed = path.endswith(MIXED)
    if leaf == "bias" and mixed:
        return tensor.unflatten(0, (heads, -1))
    if leaf != "kernel":
        return tensor
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0).contiguous()
    kernel = tensor.T.contiguous()
    if mixed:
        return kernel.unflatten(1, (heads, -1))
    return kernel.unflatten(0, (heads, -1)) if path.endswith("/out") else kernel


LAYOUTS = (
    Layout(
        system="flax",
        family="ViT",
        recognizes=has_keys(f"{TRAINING}embedding/kernel$", f"{TRAINING}Transformer/encoderblock_0/"),
        to_native=_to_native,
        from_native=_from_native,
    ),
)
