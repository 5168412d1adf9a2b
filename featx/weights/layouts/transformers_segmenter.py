"""transformers' MobileViTForSemanticSegmentation and MobileViTV2ForSemanticSegmentation, as a whole.

The backbone is in `mobilevit.` or `mobilevitv2.`, as in `transformers_mobilevit`; DeepLabV3 is `segmentation_head.`.
"""

from ..layout import Layout
from ..pairs import Pair
from ..whole import Whole
from .transformers_mobilevit import LAYOUTS as BACKBONES

PAIRS: tuple[Pair, ...] = (
    ("^segmentation_head.classifier.convolution.", "^head.classifier."),
    ("^segmentation_head.aspp.convs.#.convolution.", "^head.aspp.convs.#.0."),
    ("^segmentation_head.aspp.convs.#.normalization.", "^head.aspp.convs.#.1."),
    # read backwards, this comes before the others, which it would match
    ("^segmentation_head.aspp.convs.4.conv_1x1.convolution.", "^head.aspp.convs.4.1."),
    ("^segmentation_head.aspp.convs.4.conv_1x1.normalization.", "^head.aspp.convs.4.2."),
    ("^segmentation_head.aspp.project.convolution.", "^head.aspp.project.0."),
    ("^segmentation_head.aspp.project.normalization.", "^head.aspp.project.1."),
)


V1, V2 = (
    Whole(backbone, prefix, lambda _: PAIRS)
    for backbone, prefix in zip(BACKBONES, ("mobilevit.", "mobilevitv2."), strict=True)
)
RESIZED = "logits are resized without aligned corners, as transformers does for its loss"

LAYOUTS = tuple(
    Layout(
        "transformers",
        "Segmenter",
        whole.recognises,
        whole.to_native,
        whole.from_native,
        settings={**whole.backbone.settings, "align_corners": False},
        notes=(*notes, RESIZED),
    )
    for whole, notes in ((V1, V1.backbone.notes[:1]), (V2, V2.backbone.notes))  # the others speak of extractors
)
