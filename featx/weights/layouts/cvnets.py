"""Layouts of CVNets' MobileViT and MobileViTv2, as backbones and in segmentation and detection networks.

The modules are `conv_1`, `layer_1` to `layer_5`, `conv_1x1_exp` and `classifier`. As an encoder they have the prefix
`encoder.`, in a Mask R-CNN `model.backbone.encoder.`; the classifier is then absent, and `conv_1x1_exp`, the level
`final_conv` of MobileViT, is present only if the network uses it. Heads are in `seg_head.`, or in `extra_layers.` and
`ssd_heads.`. https://github.com/apple/ml-cvnets
"""

import re
from collections.abc import Callable, Collection, Sequence

from ..layout import CompositeLayout, Layout
from ..state_dict_keys import RenamePair, Rule, State, StateDict, forward_rules, inverse_rules, rename_keys

ENCODER = r"(?:(?:model\.)?(?:backbone\.)?encoder\.)?"

FIRST: tuple[RenamePair, ...] = (
    ("^conv_1.block.", "^stem."),
    *((f"^layer_{number + 1}.", f"^stages.{number}.") for number in range(5)),
    (".block.exp_1x1.block.", ".conv1_1x1."),
    (".block.conv_3x3.block.", ".conv2_kxk."),
    (".block.red_1x1.block.", ".conv3_1x1."),
    (".conv_proj.block.", ".conv_proj."),
)
# In CVNets, norms of transformers are unnamed; `norm` is a batch norm after a convolution.
BATCH_NORMS: tuple[RenamePair, ...] = ((".norm.", ".bn."),)

V1: tuple[RenamePair, ...] = (
    *FIRST,
    (".local_rep.conv_3x3.block.", ".conv_kxk."),
    (".local_rep.conv_1x1.block.conv.", ".conv_1x1."),
    (".fusion.block.", ".conv_fusion."),
    ("^conv_1x1_exp.block.", "^final_conv."),
    *BATCH_NORMS,
    (".global_rep.#.pre_norm_mha.0.", ".transformer.#.norm1."),
    (".global_rep.#.pre_norm_mha.1.qkv_proj.", ".transformer.#.attn.qkv."),
    (".global_rep.#.pre_norm_mha.1.out_proj.", ".transformer.#.attn.proj."),
    (".global_rep.#.pre_norm_ffn.0.", ".transformer.#.norm2."),
    (".global_rep.#.pre_norm_ffn.1.", ".transformer.#.mlp.fc1."),
    (".global_rep.#.pre_norm_ffn.4.", ".transformer.#.mlp.fc2."),
    ("^classifier.fc.", "^head.fc."),
)
V2: tuple[RenamePair, ...] = (
    *FIRST,
    (".local_rep.0.block.", ".conv_kxk."),
    (".local_rep.1.block.conv.", ".conv_1x1."),
    *BATCH_NORMS,
    (".global_rep.#.pre_norm_attn.0.", ".transformer.#.norm1."),
    (".global_rep.#.pre_norm_attn.1.qkv_proj.block.conv.", ".transformer.#.attn.qkv_proj."),
    (".global_rep.#.pre_norm_attn.1.out_proj.block.conv.", ".transformer.#.attn.out_proj."),
    (".global_rep.#.pre_norm_ffn.0.", ".transformer.#.norm2."),
    (".global_rep.#.pre_norm_ffn.1.block.conv.", ".transformer.#.mlp.fc1."),
    (".global_rep.#.pre_norm_ffn.3.block.conv.", ".transformer.#.mlp.fc2."),
    ("^classifier.1.", "^head.fc."),
)
# the last norm is numbered like another transformer block
LAST_NORM: Rule = (r"\.global_rep\.\d+\.(weight|bias)$", r".norm.\1")

IGNORES = {
    r"(.*\.)?neural_augmentor\.": "learned image augmentation",
    r"seg_head\.": "segmentation head",
    r"(ssd_heads|extra_layers|fpn)\.": "detection head",
    r"(model\.)?(backbone\.(backbone_proj_layers|fpn_proj_layers|extra_layers)|rpn|roi_heads)\.": "Mask R-CNN head",
}


def last_norms(state: State) -> list[Rule]:
    """Rules that rename `norm` in each stage of a native state dict to the index after the last transformer block."""
    matches = [re.match(r"(stages\.\d+\.\d+)\.transformer\.(\d+)\.", name) for name in state]
    last: dict[str, int] = {}
    for block in filter(None, matches):
        last[block[1]] = max(last.get(block[1], 0), int(block[2]))
    return [(rf"^{re.escape(path)}\.norm\.", f"{path}.global_rep.{number + 1}.") for path, number in last.items()]


def _recognizes(other_version: str) -> Callable[[State], bool]:
    """A predicate: the stem and first layer have CVNets' names, and no name matches the family's other version."""

    def recognizes(state: State) -> bool:
        marks = (rf"{ENCODER}conv_1\.block\.conv\.", rf"{ENCODER}layer_1\.0\.block\.exp_1x1\.block\.conv\.")
        is_cvnets = all(any(re.match(mark, name) for name in state) for mark in marks)
        return is_cvnets and not any(re.search(other_version, name) for name in state)

    return recognizes


def _to_native(pairs: Sequence[RenamePair]) -> Callable[[State, Collection[str]], StateDict]:
    table = [(f"^{ENCODER}", ""), *forward_rules(pairs), LAST_NORM]
    return lambda state, _: rename_keys(state, table)


def _from_native(pairs: Sequence[RenamePair]) -> Callable[[State], StateDict]:
    table = inverse_rules(pairs)
    return lambda state: rename_keys(state, [*last_norms(state), *table])


def _v1_to_native(state: State, names: Collection[str]) -> StateDict:
    return flip_first_conv(_to_native(V1)(state, names))


def _v1_from_native(state: State) -> StateDict:
    return _from_native(V1)(flip_first_conv(state))


def flip_first_conv(state: State) -> StateDict:
    """Reverse the input channels of the first convolution, from BGR to RGB or back."""
    first = state.get("stem.conv.weight")
    if first is None or first.ndim != 4 or first.shape[1] != 3:
        return dict(state)
    return {**state, "stem.conv.weight": first.flip(1)}


ENCODERS = (
    Layout(
        system="cvnets",
        family="MobileViT",
        recognizes=_recognizes(r"\.local_rep\.\d+\."),
        to_native=_v1_to_native,
        from_native=_v1_from_native,
        ignores=IGNORES,
        notes=("first convolution flipped from BGR to RGB: CVNets trains MobileViT on images as OpenCV reads them",),
    ),
    Layout(
        system="cvnets",
        family="MobileViTV2",
        recognizes=_recognizes(r"\.local_rep\.conv_3x3\."),
        to_native=_to_native(V2),
        from_native=_from_native(V2),
        ignores=IGNORES,
    ),
)


ENCODER_PREFIX = "encoder."
NETWORK_IGNORES = {r"(encoder\.)?neural_augmentor\.": "learned image augmentation"}

SEGMENTATION: tuple[RenamePair, ...] = (
    ("^seg_head.classifier.block.conv.", "^head.classifier."),
    ("^seg_head.aux_head.0.block.conv.", "^aux.local.conv."),
    ("^seg_head.aux_head.0.block.norm.", "^aux.local.bn."),
    ("^seg_head.aux_head.2.block.conv.", "^aux.classifier."),
    ("^seg_head.aspp.aspp_layer.convs.#.block.conv.", "^head.aspp.convs.#.0."),
    ("^seg_head.aspp.aspp_layer.convs.#.block.norm.", "^head.aspp.convs.#.1."),
    # in reverse order, these rules run before the more general ones above
    ("^seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.conv.", "^head.aspp.convs.4.1."),
    ("^seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.norm.", "^head.aspp.convs.4.2."),
    ("^seg_head.aspp.aspp_layer.project.block.conv.", "^head.aspp.project.0."),
    ("^seg_head.aspp.aspp_layer.project.block.norm.", "^head.aspp.project.1."),
    ("^seg_head.psp_layer.psp_branches.#.1.block.conv.", "^head.branches.#.1.conv."),
    ("^seg_head.psp_layer.psp_branches.#.1.block.norm.", "^head.branches.#.1.bn."),
    ("^seg_head.psp_layer.fusion.0.block.conv.", "^head.fusion.conv."),
    ("^seg_head.psp_layer.fusion.0.block.norm.", "^head.fusion.bn."),
)
DETECTION: tuple[RenamePair, ...] = (
    ("^ssd_heads.#.loc_cls_layer.block.conv.", "^head.predictions.#."),
    ("^ssd_heads.#.loc_cls_layer.dw_conv.block.conv.", "^head.predictions.#.depthwise.conv."),
    ("^ssd_heads.#.loc_cls_layer.dw_conv.block.norm.", "^head.predictions.#.depthwise.bn."),
    ("^ssd_heads.#.loc_cls_layer.pw_conv.block.conv.", "^head.predictions.#.pointwise."),
    ("^ssd_heads.#.proj_layer.block.conv.", "^head.projections.#.conv."),
    ("^ssd_heads.#.proj_layer.block.norm.", "^head.projections.#.bn."),
)
FIRST_EXTRA = 64  # stride of the head's first additional map


def extra_layers(separable: int) -> tuple[RenamePair, ...]:
    """Rename pairs of the layers for additional maps: `separable` separable convolutions and an optional pooling."""
    pairs: list[RenamePair] = [("^extra_layers.os_-1.1.block.conv.", f"^head.extra.{separable}.conv.")]
    for number in range(separable):
        foreign, native = f"^extra_layers.os_{FIRST_EXTRA << number}.", f"^head.extra.{number}."
        for step, name in {"dw_conv": "depthwise", "pw_conv": "pointwise"}.items():
            pairs.append((f"{foreign}{step}.block.conv.", f"{native}{name}.conv."))
            pairs.append((f"{foreign}{step}.block.norm.", f"{native}{name}.bn."))
    return tuple(pairs)


def segmentation(_state: State) -> Sequence[RenamePair]:
    return SEGMENTATION


def detection(state: State) -> Sequence[RenamePair]:
    steps = (r"extra_layers\.os_\d+\.dw_conv\.block\.conv\.weight", r"head\.extra\.\d+\.depthwise\.conv\.weight")
    return (*DETECTION, *extra_layers(sum(re.fullmatch("|".join(steps), name) is not None for name in state)))


LAYOUTS = (
    *ENCODERS,
    *(
        Layout(
            system="cvnets",
            family="Segmenter",
            recognizes=network.recognizes,
            to_native=network.to_native,
            from_native=network.from_native,
            ignores=NETWORK_IGNORES,
            settings={"align_corners": True},
            notes=(*network.backbone.notes, "logits are resized with aligned corners, as CVNets does"),
        )
        for network in (CompositeLayout(encoder, ENCODER_PREFIX, segmentation) for encoder in ENCODERS)
    ),
    *(
        Layout(
            system="cvnets",
            family="SSD",
            recognizes=network.recognizes,
            to_native=network.to_native,
            from_native=network.from_native,
            ignores=NETWORK_IGNORES,
            notes=network.backbone.notes,
        )
        for network in (CompositeLayout(encoder, ENCODER_PREFIX, detection) for encoder in ENCODERS)
    ),
)
