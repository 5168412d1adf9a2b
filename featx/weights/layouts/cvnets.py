"""CVNets' MobileViT and MobileViTv2, alone, in segmentation and detection networks, and these networks as a whole.

The names are those of its modules: `conv_1`, `layer_1` to `layer_5`, `conv_1x1_exp`, `classifier`; of the encoder they
stand after `encoder.`, in a Mask R-CNN after `model.backbone.encoder.`. Such networks have no classifier, and none but
those that use it have `conv_1x1_exp`, which is the level `final_conv` of MobileViT. Heads are in `seg_head.`, or in
`extra_layers.` and `ssd_heads.`. https://github.com/apple/ml-cvnets
"""

import re
from collections.abc import Callable, Collection, Sequence

from ..layout import Layout, Whole
from ..state_dict_keys import Pair, Rule, State, StateDict, renamed, rules, rules_back

ENCODER = r"(?:(?:model\.)?(?:backbone\.)?encoder\.)?"

FIRST: tuple[Pair, ...] = (
    ("^conv_1.block.", "^stem."),
    *((f"^layer_{number + 1}.", f"^stages.{number}.") for number in range(5)),
    (".block.exp_1x1.block.", ".conv1_1x1."),
    (".block.conv_3x3.block.", ".conv2_kxk."),
    (".block.red_1x1.block.", ".conv3_1x1."),
    (".conv_proj.block.", ".conv_proj."),
)
# norms of transformers have no name of their own in CVNets; what is called `norm` there follows a convolution
BATCH_NORMS: tuple[Pair, ...] = ((".norm.", ".bn."),)

V1: tuple[Pair, ...] = (
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
V2: tuple[Pair, ...] = (
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
# the last norm is numbered like one more transformer block
LAST_NORM: Rule = (r"\.global_rep\.\d+\.(weight|bias)$", r".norm.\1")

IGNORES = {
    r"(.*\.)?neural_augmentor\.": "augmentation of images that was learnt with the weights",
    r"seg_head\.": "segmentation head",
    r"(ssd_heads|extra_layers|fpn)\.": "detection head",
    r"(model\.)?(backbone\.(backbone_proj_layers|fpn_proj_layers|extra_layers)|rpn|roi_heads)\.": "Mask R-CNN head",
}


def last_norms(state: State) -> list[Rule]:
    """Back from `norm`: in each stage of a native state, the number that follows its transformer blocks'."""
    found = [re.match(r"(stages\.\d+\.\d+)\.transformer\.(\d+)\.", name) for name in state]
    last: dict[str, int] = {}
    for block in filter(None, found):
        last[block[1]] = max(last.get(block[1], 0), int(block[2]))
    return [(rf"^{re.escape(path)}\.norm\.", f"{path}.global_rep.{number + 1}.") for path, number in last.items()]


def _recognises(others: str) -> Callable[[State], bool]:
    """Whether the stem and the first layer are CVNets', and no name tells of the other version of the family."""

    def recognises(state: State) -> bool:
        marks = (rf"{ENCODER}conv_1\.block\.conv\.", rf"{ENCODER}layer_1\.0\.block\.exp_1x1\.block\.conv\.")
        found = all(any(re.match(mark, name) for name in state) for mark in marks)
        return found and not any(re.search(others, name) for name in state)

    return recognises


def _to_native(pairs: Sequence[Pair]) -> Callable[[State, Collection[str]], StateDict]:
    table = [(f"^{ENCODER}", ""), *rules(pairs), LAST_NORM]
    return lambda state, _: renamed(state, table)


def _from_native(pairs: Sequence[Pair]) -> Callable[[State], StateDict]:
    table = rules_back(pairs)
    return lambda state: renamed(state, [*last_norms(state), *table])


def _v1_to_native(state: State, names: Collection[str]) -> StateDict:
    return turned_round(_to_native(V1)(state, names))


def _v1_from_native(state: State) -> StateDict:
    return _from_native(V1)(turned_round(state))


def turned_round(state: State) -> StateDict:
    """A native state whose first convolution takes BGR if it took RGB, and the other way round."""
    first = state.get("stem.conv.weight")
    if first is None or first.ndim != 4 or first.shape[1] != 3:
        return dict(state)
    return {**state, "stem.conv.weight": first.flip(1)}


ENCODERS = (
    Layout(
        system="cvnets",
        family="MobileViT",
        recognises=_recognises(r"\.local_rep\.\d+\."),
        to_native=_v1_to_native,
        from_native=_v1_from_native,
        ignores=IGNORES,
        notes=("first convolution flipped from BGR to RGB: CVNets trains MobileViT on images as OpenCV reads them",),
    ),
    Layout(
        system="cvnets",
        family="MobileViTV2",
        recognises=_recognises(r"\.local_rep\.conv_3x3\."),
        to_native=_to_native(V2),
        from_native=_from_native(V2),
        ignores=IGNORES,
    ),
)


ENCODER_PREFIX = "encoder."
NETWORK_IGNORES = {r"(encoder\.)?neural_augmentor\.": "augmentation of images that was learnt with the weights"}

SEGMENTATION: tuple[Pair, ...] = (
    ("^seg_head.classifier.block.conv.", "^head.classifier."),
    ("^seg_head.aux_head.0.block.conv.", "^aux.local.conv."),
    ("^seg_head.aux_head.0.block.norm.", "^aux.local.bn."),
    ("^seg_head.aux_head.2.block.conv.", "^aux.classifier."),
    ("^seg_head.aspp.aspp_layer.convs.#.block.conv.", "^head.aspp.convs.#.0."),
    ("^seg_head.aspp.aspp_layer.convs.#.block.norm.", "^head.aspp.convs.#.1."),
    # read backwards, this comes before the others, which it would match
    ("^seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.conv.", "^head.aspp.convs.4.1."),
    ("^seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block.norm.", "^head.aspp.convs.4.2."),
    ("^seg_head.aspp.aspp_layer.project.block.conv.", "^head.aspp.project.0."),
    ("^seg_head.aspp.aspp_layer.project.block.norm.", "^head.aspp.project.1."),
    ("^seg_head.psp_layer.psp_branches.#.1.block.conv.", "^head.branches.#.1.conv."),
    ("^seg_head.psp_layer.psp_branches.#.1.block.norm.", "^head.branches.#.1.bn."),
    ("^seg_head.psp_layer.fusion.0.block.conv.", "^head.fusion.conv."),
    ("^seg_head.psp_layer.fusion.0.block.norm.", "^head.fusion.bn."),
)
DETECTION: tuple[Pair, ...] = (
    ("^ssd_heads.#.loc_cls_layer.block.conv.", "^head.predictions.#."),
    ("^ssd_heads.#.loc_cls_layer.dw_conv.block.conv.", "^head.predictions.#.depthwise.conv."),
    ("^ssd_heads.#.loc_cls_layer.dw_conv.block.norm.", "^head.predictions.#.depthwise.bn."),
    ("^ssd_heads.#.loc_cls_layer.pw_conv.block.conv.", "^head.predictions.#.pointwise."),
    ("^ssd_heads.#.proj_layer.block.conv.", "^head.projections.#.conv."),
    ("^ssd_heads.#.proj_layer.block.norm.", "^head.projections.#.bn."),
)
FIRST_EXTRA = 64  # stride of the first map that the head makes


def extra_maps(separable: int) -> tuple[Pair, ...]:
    """Names of the layers that make further maps: so many separable convolutions, and then maybe an average."""
    pairs: list[Pair] = [("^extra_layers.os_-1.1.block.conv.", f"^head.extra.{separable}.conv.")]
    for number in range(separable):
        theirs, ours = f"^extra_layers.os_{FIRST_EXTRA << number}.", f"^head.extra.{number}."
        for step, name in {"dw_conv": "depthwise", "pw_conv": "pointwise"}.items():
            pairs.append((f"{theirs}{step}.block.conv.", f"{ours}{name}.conv."))
            pairs.append((f"{theirs}{step}.block.norm.", f"{ours}{name}.bn."))
    return tuple(pairs)


def segmentation(_state: State) -> Sequence[Pair]:
    return SEGMENTATION


def detection(state: State) -> Sequence[Pair]:
    steps = (r"extra_layers\.os_\d+\.dw_conv\.block\.conv\.weight", r"head\.extra\.\d+\.depthwise\.conv\.weight")
    return (*DETECTION, *extra_maps(sum(re.fullmatch("|".join(steps), name) is not None for name in state)))


LAYOUTS = (
    *ENCODERS,
    *(
        Layout(
            system="cvnets",
            family="Segmenter",
            recognises=whole.recognises,
            to_native=whole.to_native,
            from_native=whole.from_native,
            ignores=NETWORK_IGNORES,
            settings={"align_corners": True},
            notes=(*whole.backbone.notes, "logits are resized with aligned corners, as CVNets does"),
        )
        for whole in (Whole(encoder, ENCODER_PREFIX, segmentation) for encoder in ENCODERS)
    ),
    *(
        Layout(
            system="cvnets",
            family="SSD",
            recognises=whole.recognises,
            to_native=whole.to_native,
            from_native=whole.from_native,
            ignores=NETWORK_IGNORES,
            notes=whole.backbone.notes,
        )
        for whole in (Whole(encoder, ENCODER_PREFIX, detection) for encoder in ENCODERS)
    ),
)
