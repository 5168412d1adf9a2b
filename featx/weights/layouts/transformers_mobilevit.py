"""Layouts of transformers' MobileViT and MobileViTV2 (models/mobilevit, models/mobilevitv2) and of their segmenters.

MobileViT weights come from CVNets, which trained them on BGR images; the first convolution is flipped for RGB images.
MobileViTV2 was trained on RGB images. A backbone can be loaded from a segmentation model, whose MobileViT encoder ends
before the expansion (final_conv). In a segmenter, the backbone is in `mobilevit.` or `mobilevitv2.` and DeepLabV3 in
`segmentation_head.`.
"""

from collections.abc import Collection

from ..layout import CompositeLayout, Layout, has_keys
from ..qkv import fuse_projections, split_projections
from ..state_dict_keys import RenamePair, Rule, State, StateDict, rename_keys
from .cvnets import flip_first_conv
from .transformers import to_transformers

COMMON: tuple[Rule, ...] = (
    (r"^mobilevit(v2)?\.", ""),
    (r"\.attention\.(qkv_proj|out_proj)\.convolution\.", r".attn.\1."),
    (r"\.ffn\.conv(\d)\.convolution\.", r".mlp.fc\1."),
    (r"\.attention\.attention\.(q|k|v)\w+\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.conv_1x1\.convolution\.", ".conv_1x1."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^conv_stem\.", "stem."),
    (r"^conv_1x1_exp\.", "final_conv."),
    (r"^encoder\.layer\.(\d+)\.layer\.(\d+)\.", r"stages.\1.\2."),
    (r"^encoder\.layer\.(\d+)\.downsampling_layer\.", r"stages.\1.0."),
    (r"^encoder\.layer\.(\d+)\.", r"stages.\1.1."),
    (r"\.expand_1x1\.", ".conv1_1x1."),
    (r"\.conv_3x3\.", ".conv2_kxk."),
    (r"\.reduce_1x1\.", ".conv3_1x1."),
    (r"\.conv_projection\.", ".conv_proj."),
    (r"\.fusion\.", ".conv_fusion."),
    (r"\.transformer\.layer\.", ".transformer."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layernorm\.", ".norm."),
    (r"^classifier\.", "head.fc."),
)
# Stages 0 and 1 contain inverted residuals; the others contain an inverted residual and a block with attention.
BACK: tuple[Rule, ...] = (
    (r"^stem\.", "conv_stem."),
    (r"^final_conv\.", "conv_1x1_exp."),
    (r"^stages\.([01])\.", r"encoder.layer.\1.layer."),
    (r"^stages\.(\d+)\.0\.", r"encoder.layer.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.1\.", r"encoder.layer.\1."),
    (r"\.conv1_1x1\.", ".expand_1x1."),
    (r"\.conv2_kxk\.", ".conv_3x3."),
    (r"\.conv3_1x1\.", ".reduce_1x1."),
    (r"\.conv_proj\.", ".conv_projection."),
    (r"\.conv_fusion\.", ".fusion."),
    (r"\.transformer\.", ".transformer.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.norm\.", ".layernorm."),
    (r"\.conv\.", ".convolution."),
    (r"\.bn\.", ".normalization."),
    (r"\.conv_1x1\.(?=weight)", ".conv_1x1.convolution."),
    (r"^head\.fc\.", "classifier."),
)
V1_BACK: tuple[Rule, ...] = (
    *BACK,
    (r"\.attn\.q\.", ".attention.attention.query."),
    (r"\.attn\.k\.", ".attention.attention.key."),
    (r"\.attn\.v\.", ".attention.attention.value."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
V2_BACK: tuple[Rule, ...] = (
    *BACK,
    (r"\.attn\.(\w+)\.", r".attention.\1.convolution."),
    (r"\.mlp\.fc(\d)\.", r".ffn.conv\1.convolution."),
)
RESIDUAL = r"(layer\.\d+|downsampling_layer)\.(expand_1x1|conv_3x3|reduce_1x1)"
ATTENTION = r"conv_kxk|conv_1x1|conv_projection|fusion|layernorm|transformer\.layer\.\d+"
KNOWN = rf"conv_stem\.|conv_1x1_exp\.|encoder\.layer\.\d+\.({RESIDUAL}|{ATTENTION})\."


def v1_to_native(state: State, _names: Collection[str]) -> StateDict:
    return flip_first_conv(fuse_projections(rename_keys(state, COMMON)))


def v1_from_native(state: State) -> StateDict:
    return to_transformers(split_projections(flip_first_conv(state)), V1_BACK, KNOWN, "mobilevit")


def v2_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, COMMON)


def v2_from_native(state: State) -> StateDict:
    return to_transformers(state, V2_BACK, KNOWN, "mobilevitv2")


HEAD = {r"segmentation_head\.": "head of semantic segmentation"}

BACKBONES = (
    Layout(
        "transformers",
        "MobileViT",
        has_keys(
            r"(mobilevit\.)?conv_stem\.convolution\.weight",
            r"(mobilevit\.)?encoder\.layer\.2\.transformer\.layer\.0\.attention\.attention\.query\.weight",
        ),
        v1_to_native,
        v1_from_native,
        ignores=HEAD,
        notes=(
            "first convolution flipped from BGR to RGB",
            "a model for semantic segmentation has no expansion: ask for the levels before it (final_conv)",
        ),
    ),
    Layout(
        "transformers",
        "MobileViTV2",
        has_keys(
            r"(mobilevitv2\.)?conv_stem\.convolution\.weight",
            r"(mobilevitv2\.)?encoder\.layer\.2\.transformer\.layer\.0\.attention\.qkv_proj\.convolution\.weight",
        ),
        v2_to_native,
        v2_from_native,
        ignores=HEAD,
        settings={"local_dilation": False},
        notes=(
            "with output_stride, local convolutions are not dilated, as in transformers; weights that were converted "
            "from CVNets, as Apple's, were trained with them dilated: local_dilation=True",
            "a map whose sides are not multiples of the patch is enlarged, whereas transformers pads it with zeros",
        ),
    ),
)

SEGMENTATION: tuple[RenamePair, ...] = (
    ("^segmentation_head.classifier.convolution.", "^head.classifier."),
    ("^segmentation_head.aspp.convs.#.convolution.", "^head.aspp.convs.#.0."),
    ("^segmentation_head.aspp.convs.#.normalization.", "^head.aspp.convs.#.1."),
    # in reverse order, these rules run before the more general ones above
    ("^segmentation_head.aspp.convs.4.conv_1x1.convolution.", "^head.aspp.convs.4.1."),
    ("^segmentation_head.aspp.convs.4.conv_1x1.normalization.", "^head.aspp.convs.4.2."),
    ("^segmentation_head.aspp.project.convolution.", "^head.aspp.project.0."),
    ("^segmentation_head.aspp.project.normalization.", "^head.aspp.project.1."),
)

V1_SEGMENTER, V2_SEGMENTER = (
    CompositeLayout(backbone, prefix, lambda _: SEGMENTATION)
    for backbone, prefix in zip(BACKBONES, ("mobilevit.", "mobilevitv2."), strict=True)
)
RESIZED = "logits are resized without aligned corners, as transformers does for its loss"

LAYOUTS = (
    *BACKBONES,
    *(
        Layout(
            "transformers",
            "Segmenter",
            network.recognizes,
            network.to_native,
            network.from_native,
            settings={**network.backbone.settings, "align_corners": False},
            notes=(*notes, RESIZED),
        )
        for network, notes in (
            (V1_SEGMENTER, V1_SEGMENTER.backbone.notes[:1]),  # the other notes are about extractors
            (V2_SEGMENTER, V2_SEGMENTER.backbone.notes),
        )
    ),
)
