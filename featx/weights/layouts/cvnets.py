"""CVNets' MobileViT and MobileViTv2, alone or as the encoder of a segmentation or detection network.

The names are those of its modules: `conv_1`, `layer_1` to `layer_5`, `conv_1x1_exp`, `classifier`; of the encoder they
stand after `encoder.`, in a Mask R-CNN after `model.backbone.encoder.`. Such networks have no classifier, and none but
those that use it have `conv_1x1_exp`, which is the level `final_conv` of MobileViT. https://github.com/apple/ml-cvnets
"""

import re
from collections.abc import Callable, Collection, Sequence

from ..layout import Layout
from ..names import Rule, renamed
from ..pairs import Pair, rules, rules_back
from ..state import State, StateDict

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


LAYOUTS = (
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
