"""CVNets' networks for segmentation and detection on MobileViT and MobileViTv2, as a whole.

The backbone is in `encoder.`, as in `cvnets`; the heads are in `seg_head.`, or in `extra_layers.` and `ssd_heads.`.
https://github.com/apple/ml-cvnets
"""

import re
from collections.abc import Sequence

from ..layout import Layout
from ..pairs import Pair
from ..state import State
from ..whole import Whole
from .cvnets import LAYOUTS as ENCODERS

ENCODER = "encoder."
IGNORES = {r"(encoder\.)?neural_augmentor\.": "augmentation of images that was learnt with the weights"}

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
    *(
        Layout(
            system="cvnets",
            family="Segmenter",
            recognises=whole.recognises,
            to_native=whole.to_native,
            from_native=whole.from_native,
            ignores=IGNORES,
            settings={"align_corners": True},
            notes=(*whole.backbone.notes, "logits are resized with aligned corners, as CVNets does"),
        )
        for whole in (Whole(encoder, ENCODER, segmentation) for encoder in ENCODERS)
    ),
    *(
        Layout(
            system="cvnets",
            family="SSD",
            recognises=whole.recognises,
            to_native=whole.to_native,
            from_native=whole.from_native,
            ignores=IGNORES,
            notes=whole.backbone.notes,
        )
        for whole in (Whole(encoder, ENCODER, detection) for encoder in ENCODERS)
    ),
)
