"""Which modules of a model compute attention, and what their blocks are called.

Their classes are known by full name, so that none of their packages is imported.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import index
from typing import Any

from torch import nn

from ..errors import ArgumentError, ContractError

# Modules whose weights are among tokens or pixels, not channels, and come as (B, heads, queries, keys).
TIMM = {
    "layers.attention": ("Attention", "AttentionRope"),
    "layers.attention2d": ("MultiQueryAttention2d",),
    "layers.attention_pool": ("AttentionPoolLatent",),
    "layers.attention_pool2d": ("AttentionPool2d",),
    "models.beit": ("Attention",),
    "models.cait": ("ClassAttn",),
    "models.crossvit": ("CrossAttention",),
    "models.davit": ("WindowAttention",),
    "models.efficientformer": ("Attention",),
    "models.eva": ("EvaAttention",),
    "models.fastvit": ("Attention",),
    "models.gcvit": ("WindowAttentionGlobal",),
    "models.hieradet_sam2": ("MultiScaleAttention",),
    "models.levit": ("Attention", "AttentionDownsample"),
    "models.maxxvit": ("Attention2d", "AttentionCl"),
    "models.metaformer": ("Attention",),
    "models.mvitv2": ("MultiScaleAttention",),
    "models.nextvit": ("EfficientAttention",),
    "models.pvt_v2": ("Attention",),
    "models.swin_transformer": ("WindowAttention",),
    "models.swin_transformer_v2": ("WindowAttention",),
    "models.swin_transformer_v2_cr": ("WindowMultiHeadAttention",),
    "models.tiny_vit": ("Attention",),
    "models.tnt": ("Attention",),
    "models.twins": ("GlobalSubSampleAttn",),
    "models.vision_transformer_relpos": ("RelPosAttention",),
    "models.visformer": ("Attention",),
    "models.volo": ("Attention", "ClassAttention"),
}
TRANSFORMERS = {
    "aimv2": ("Aimv2Attention", "Aimv2AttentionPoolingHead"),
    "beit": ("BeitAttention",),
    "blip": ("BlipAttention",),
    "chinese_clip": ("ChineseCLIPVisionAttention",),
    "clip": ("CLIPAttention",),
    "data2vec": ("Data2VecVisionSelfAttention", "Data2VecVisionSdpaSelfAttention"),
    "deit": ("DeiTAttention",),
    "dinov2": ("Dinov2Attention",),
    "dinov2_with_registers": ("Dinov2WithRegistersAttention",),
    "dinov3_vit": ("DINOv3ViTAttention",),
    "donut": ("DonutSwinSelfAttention",),
    "dpt": ("DPTSelfAttention",),
    "glpn": ("GLPNEfficientSelfAttention",),
    "ijepa": ("IJepaAttention",),
    "internvl": ("InternVLVisionAttention",),
    "levit": ("LevitAttention", "LevitAttentionSubsample"),
    "lw_detr": ("LwDetrViTAttention",),
    "maskformer": ("MaskFormerSwinSelfAttention",),
    "metaclip_2": ("MetaClip2Attention",),
    "mlcd": ("MLCDAttention",),
    "mobilevit": ("MobileViTSelfAttention",),
    "pixio": ("PixioAttention",),
    "pvt": ("PvtEfficientSelfAttention",),
    "pvt_v2": ("PvtV2SelfAttention",),
    "rf_detr": ("RfDetrDinov2Attention",),
    "sam": ("SamVisionSdpaAttention",),
    "sam2": ("Sam2MultiScaleAttention",),
    "sam_hq": ("SamHQVisionSdpaAttention",),
    "sapiens2": ("Sapiens2Attention",),
    "segformer": ("SegformerAttention",),
    "siglip": ("SiglipAttention",),
    "swin": ("SwinAttention",),
    "swinv2": ("Swinv2SelfAttention",),
    "tipsv2": ("Tipsv2VisionAttention",),
    "vit": ("ViTAttention",),
    "vit_mae": ("ViTMAEAttention",),
    "vit_msn": ("ViTMSNAttention",),
    "vitpose_backbone": ("VitPoseBackboneSelfAttention",),
}
OTHERS = {
    "featx.models.layers.transformer": ("Attention",),
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
}
SEPARABLE = {
    "featx.models.mobilevitv2": ("LinearAttention",),
    "timm.models.mobilevit": ("LinearSelfAttention",),
    "transformers.models.mobilevitv2.modeling_mobilevitv2": ("MobileViTV2LinearSelfAttention",),
}
# Modules of transformers that are not called modeling_ and their folder.
MODELING = {"data2vec": "data2vec_vision", "donut": "donut_swin", "maskformer": "maskformer_swin"}
ASKED = {"torch.nn.modules.activation": ("MultiheadAttention",)}
# Blocks that attend to each pixel of their patches by itself, and how many pixels these have.
PER_POSITION: Mapping[str, Callable[[Any], int]] = {
    "featx.models.mobilevit.MobileViTBlock": lambda block: block.patch**2,
    "timm.models.mobilevit.MobileVitBlock": lambda block: block.patch_area,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTLayer": lambda block: (
        block.patch_width * block.patch_height
    ),
}
Blocks = Sequence[int | str]


class Kind(Enum):
    """How a module's weights are proven.

    WATCHED: they go into the fused kernel, or from a softmax into a matrix product with the values.
    SEPARABLE: they go from a softmax into a product with the keys.
    ASKED: PyTorch's own module is asked for them.
    """

    WATCHED = "watched"
    SEPARABLE = "separable"
    ASKED = "asked"


def _full_names() -> Iterator[tuple[str, Kind]]:
    modeling = {f"{family}.modeling_{MODELING.get(family, family)}": names for family, names in TRANSFORMERS.items()}
    for kind, prefix, table in (
        (Kind.WATCHED, "", OTHERS),
        (Kind.WATCHED, "timm.", TIMM),
        (Kind.WATCHED, "transformers.models.", modeling),
        (Kind.SEPARABLE, "", SEPARABLE),
        (Kind.ASKED, "", ASKED),
    ):
        yield from ((f"{prefix}{module}.{name}", kind) for module, names in table.items() for name in names)


KINDS: Mapping[str, Kind] = dict(_full_names())


@dataclass(frozen=True, slots=True)
class Block:
    """A module that computes attention.

    name: path of the block it is part of. path: its own. positions: pixels of a patch each of which is attended to by
    itself, and stands beside the others in the batch (MobileViT); 1 where attention is among all tokens.
    """

    name: str
    path: str
    module: nn.Module
    kind: Kind
    positions: int = 1


def blocks_of(model: nn.Module) -> list[Block]:
    """Every block with attention, in the order the model registers them; ContractError naming what it has instead."""
    _require_uncompiled(model)
    found: list[Block] = []
    for path, module in model.named_modules():
        kind = KINDS.get(_class_of(module))
        if kind is not None:
            found.append(Block(_block_of(path), path, module, kind, _positions(model, path)))
    if not found:
        suspects = sorted({_class_of(module) for module in model.modules() if _says_attention(module)})
        why = (
            f"its {', '.join(suspects)} have no map that could be proven" if suspects else "it has only " + _has(model)
        )
        raise ContractError(f"{type(model).__name__} has no attention among tokens that can be captured: {why}")
    names = [block.name for block in found]
    return [b if names.count(b.name) == 1 else Block(b.path, b.path, b.module, b.kind, b.positions) for b in found]


def chosen(model: nn.Module, blocks: Blocks | None) -> list[Block]:
    """The blocks asked for, in the order asked; None is all of them.

    A number counts among the blocks that are numbered in the model, from the last one if it is negative; a name is the
    block's or its module's, also of an attention pool, which has no number. A module of the user's own class is found
    by its path alone. ArgumentError listing the blocks if there is no such.
    """
    if blocks is None:
        return blocks_of(model)
    if isinstance(blocks, str | int) or not isinstance(blocks, Sequence) or not blocks:
        raise ArgumentError(f"blocks={blocks!r}: expected None for all, or numbers and names in a list, such as [-1]")
    own = [block for wanted in blocks if isinstance(wanted, str) for block in _own(model, wanted)]
    if len(own) == len(blocks):
        _require_uncompiled(model)
        return _distinct(own, blocks)
    every = blocks_of(model)
    numbered = [block for block in every if any(map(str.isdigit, block.path))] or every
    return _distinct([_one(every + own, numbered, wanted, blocks) for wanted in blocks], blocks)


def _one(every: list[Block], numbered: list[Block], wanted: int | str, blocks: object) -> Block:
    if isinstance(wanted, str):
        matching = [block for block in every if wanted in (block.name, block.path)]
    else:
        number, count = _number(wanted, blocks), len(numbered)
        matching = [numbered[number]] if -count <= number < count else []
    if not matching:
        rows = [f"  {i}: {block.name}" for i, block in enumerate(numbered)]
        rows += [f"  {block.name}" for block in every if block not in numbered]
        raise ArgumentError(
            f"blocks={blocks!r}: there is no block {wanted!r}. Those with attention are:\n" + "\n".join(rows)
        )
    return matching[0]


def _number(wanted: Any, blocks: object) -> int:
    if isinstance(wanted, bool) or not hasattr(wanted, "__index__"):
        raise ArgumentError(f"blocks={blocks!r}: {wanted!r} is neither a number nor a name")
    return index(wanted)


def _distinct(found: list[Block], blocks: object) -> list[Block]:
    if len({block.path for block in found}) < len(found):
        raise ArgumentError(f"blocks={blocks!r} asks for a block twice")
    return found


def _own(model: nn.Module, path: str) -> Iterator[Block]:
    """The module at that path if its class is the user's own, of no package whose classes are known."""
    module = dict(model.named_modules()).get(path)
    package = _class_of(module).partition(".")[0] if module is not None else "torch"
    if module is not None and package not in ("featx", "timm", "transformers", "torchvision", "torch"):
        yield Block(path, path, module, Kind.WATCHED)


def _block_of(path: str) -> str:
    """`blocks.3` of `blocks.3.attn`: up to the last number in the path, or the parent's path if there is none."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if numbers:
        return ".".join(parts[: numbers[-1] + 1])
    return path.rpartition(".")[0] or path


def _positions(model: nn.Module, path: str) -> int:
    """Pixels per patch where an ancestor of the module attends to each by itself."""
    while path:
        path = path.rpartition(".")[0]
        ancestor = model.get_submodule(path)
        if (count := PER_POSITION.get(_class_of(ancestor))) is not None:
            return count(ancestor)
    return 1


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _says_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


def _has(model: nn.Module) -> str:
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    return ", ".join(kinds) or "nothing"


def _require_uncompiled(model: nn.Module) -> None:
    compiled = type(model).__name__ == "OptimizedModule"
    if compiled or any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise ContractError(
            "a compiled model computes attention where it cannot be seen: capture from the model before torch.compile"
            + (", its _orig_mod" if compiled else "")
        )
