"""The attention modules of a model, and the names of their blocks.

Classes are listed by their full names, so that no package is imported to recognize them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import index
from typing import Any

from torch import nn

from ..errors import ArgumentError, ContractError

# Modules that attend among tokens or pixels, not channels, with weights (B, heads, queries, keys).
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
    "featx.models.layers.rotary_block": ("RotaryAttention", "KeylessBiasAttention", "SplitAttention", "LatentPool"),
    "featx.models.layers.transformer": ("Attention",),
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
}
SEPARABLE = {
    "featx.models.mobilevitv2": ("LinearAttention",),
    "timm.models.mobilevit": ("LinearSelfAttention",),
    "transformers.models.mobilevitv2.modeling_mobilevitv2": ("MobileViTV2LinearSelfAttention",),
}
# Modules of transformers whose name is not "modeling_" and the name of their folder.
MODELING = {"data2vec": "data2vec_vision", "donut": "donut_swin", "maskformer": "maskformer_swin"}
ASKED = {"torch.nn.modules.activation": ("MultiheadAttention",)}
# Blocks that attend to each pixel of their patches separately, and the pixels per patch.
PER_POSITION: Mapping[str, Callable[[Any], int]] = {
    "featx.models.mobilevit.MobileViTBlock": lambda block: block.patch**2,
    "timm.models.mobilevit.MobileVitBlock": lambda block: block.patch_area,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTLayer": lambda block: (
        block.patch_width * block.patch_height
    ),
}
Blocks = Sequence[int | str]


class CaptureKind(Enum):
    """How the attention weights of a module are captured.

    TRACED: traced into the fused kernel, or from a softmax to a matrix product with the values.
    SEPARABLE: traced from a softmax to a product with the keys.
    ASKED: returned by `nn.MultiheadAttention` with `need_weights=True`.
    """

    TRACED = "watched"
    SEPARABLE = "separable"
    ASKED = "asked"


def _full_names() -> Iterator[tuple[str, CaptureKind]]:
    modeling = {f"{family}.modeling_{MODELING.get(family, family)}": names for family, names in TRANSFORMERS.items()}
    for kind, prefix, table in (
        (CaptureKind.TRACED, "", OTHERS),
        (CaptureKind.TRACED, "timm.", TIMM),
        (CaptureKind.TRACED, "transformers.models.", modeling),
        (CaptureKind.SEPARABLE, "", SEPARABLE),
        (CaptureKind.ASKED, "", ASKED),
    ):
        yield from ((f"{prefix}{module}.{name}", kind) for module, names in table.items() for name in names)


KINDS: Mapping[str, CaptureKind] = dict(_full_names())


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """A module that computes attention.

    Attributes:
        name: path of the block that contains the module.
        path: path of the module.
        module: the module.
        kind: how its weights are captured.
        positions: pixels per patch that are attended to separately, side by side in the batch (MobileViT); 1 where
            attention is among all tokens.
    """

    name: str
    path: str
    module: nn.Module
    kind: CaptureKind
    positions: int = 1


def blocks_of(model: nn.Module) -> list[AttentionBlock]:
    """All blocks with attention, in the order of registration. ContractError, with the reason, if there are none."""
    _require_uncompiled(model)
    blocks: list[AttentionBlock] = []
    for path, module in model.named_modules():
        kind = KINDS.get(_class_of(module))
        if kind is not None:
            blocks.append(AttentionBlock(_block_of(path), path, module, kind, _positions(model, path)))
    if not blocks:
        suspects = sorted({_class_of(module) for module in model.modules() if _is_named_attention(module)})
        why = (
            f"its {', '.join(suspects)} have no map that could be proven"
            if suspects
            else "it has only " + _leaf_classes(model)
        )
        raise ContractError(f"{type(model).__name__} has no attention among tokens that can be captured: {why}")
    names = [block.name for block in blocks]
    return [
        b if names.count(b.name) == 1 else AttentionBlock(b.path, b.path, b.module, b.kind, b.positions) for b in blocks
    ]


def select_blocks(model: nn.Module, blocks: Blocks | None) -> list[AttentionBlock]:
    """The requested blocks in the requested order.

    Args:
        model: the model.
        blocks: None for all. An int is an index into the numbered blocks; negative indices count from the last one. A
            name is the path of a block or of its attention module, including attention pools, which have no number. A
            module of a user-defined class is requested by its path.

    Raises:
        ArgumentError: a block does not exist; the message lists those that do.
    """
    if blocks is None:
        return blocks_of(model)
    if isinstance(blocks, str | int) or not isinstance(blocks, Sequence) or not blocks:
        raise ArgumentError(f"blocks={blocks!r}: expected None for all, or numbers and names in a list, such as [-1]")
    user_defined = [block for wanted in blocks if isinstance(wanted, str) for block in _user_defined(model, wanted)]
    if len(user_defined) == len(blocks):
        _require_uncompiled(model)
        return _distinct(user_defined, blocks)
    every = blocks_of(model)
    numbered = [block for block in every if any(map(str.isdigit, block.path))] or every
    return _distinct([_find_block(every + user_defined, numbered, wanted, blocks) for wanted in blocks], blocks)


def _find_block(
    every: list[AttentionBlock], numbered: list[AttentionBlock], wanted: int | str, blocks: object
) -> AttentionBlock:
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


def _distinct(selected: list[AttentionBlock], blocks: object) -> list[AttentionBlock]:
    if len({block.path for block in selected}) < len(selected):
        raise ArgumentError(f"blocks={blocks!r} asks for a block twice")
    return selected


def _user_defined(model: nn.Module, path: str) -> Iterator[AttentionBlock]:
    """The module at `path` if its class is user-defined: not part of a package whose classes are listed here."""
    module = dict(model.named_modules()).get(path)
    package = _class_of(module).partition(".")[0] if module is not None else "torch"
    if module is not None and package not in ("featx", "timm", "transformers", "torchvision", "torch"):
        yield AttentionBlock(path, path, module, CaptureKind.TRACED)


def _block_of(path: str) -> str:
    """Path of the block: up to the last number (`blocks.3` for `blocks.3.attn`), or the parent's path without one."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    if numbers:
        return ".".join(parts[: numbers[-1] + 1])
    return path.rpartition(".")[0] or path


def _positions(model: nn.Module, path: str) -> int:
    """Pixels per patch if an ancestor of the module attends to each separately, else 1."""
    while path:
        path = path.rpartition(".")[0]
        ancestor = model.get_submodule(path)
        if (count := PER_POSITION.get(_class_of(ancestor))) is not None:
            return count(ancestor)
    return 1


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_named_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


def _leaf_classes(model: nn.Module) -> str:
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    return ", ".join(kinds) or "nothing"


def _require_uncompiled(model: nn.Module) -> None:
    compiled = type(model).__name__ == "OptimizedModule"
    if compiled or any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise ContractError(
            "a compiled model computes attention where it cannot be seen: capture from the model before torch.compile"
            + (", its _orig_mod" if compiled else "")
        )
