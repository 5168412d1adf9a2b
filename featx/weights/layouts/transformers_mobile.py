"""Layouts of transformers' EfficientNet and MobileNetV2 (models/efficientnet and models/mobilenet_v2).

transformers numbers blocks consecutively, native names within each stage; the names of the model give the mapping.
Both were trained in TensorFlow, whose padding and norm eps they need.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ...errors import CheckpointError
from ...models.layers.mobile import MobileStyle, as_tensorflow
from ...preprocessing import IMAGENET_MEAN, INCEPTION
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_keys, rename_modules
from .transformers import to_transformers


@dataclass(frozen=True, slots=True)
class Naming:
    """transformers' module names by native names.

    prefix: name of the architecture. outside, separable, inverted: modules outside the blocks, in blocks without
    expansion, and in blocks with expansion. block: the name of a block by its index in the network. known: pattern of
    the names besides the head.
    """

    prefix: str
    outside: ModuleTable
    separable: ModuleTable
    inverted: ModuleTable
    block: Callable[[int], str]
    known: str


EFFICIENTNET = Naming(
    "efficientnet",
    {
        "conv_stem": "embeddings.convolution",
        "bn1": "embeddings.batchnorm",
        "conv_head": "encoder.top_conv",
        "bn2": "encoder.top_bn",
        "classifier": "classifier",
    },
    {
        "conv_dw": "depthwise_conv.depthwise_conv",
        "bn1": "depthwise_conv.depthwise_norm",
        "se.conv_reduce": "squeeze_excite.reduce",
        "se.conv_expand": "squeeze_excite.expand",
        "conv_pw": "projection.project_conv",
        "bn2": "projection.project_bn",
    },
    {
        "conv_pw": "expansion.expand_conv",
        "bn1": "expansion.expand_bn",
        "conv_dw": "depthwise_conv.depthwise_conv",
        "bn2": "depthwise_conv.depthwise_norm",
        "se.conv_reduce": "squeeze_excite.reduce",
        "se.conv_expand": "squeeze_excite.expand",
        "conv_pwl": "projection.project_conv",
        "bn3": "projection.project_bn",
    },
    "encoder.blocks.{}".format,
    r"embeddings\.|encoder\.",
)
MOBILENETV2 = Naming(
    "mobilenet_v2",
    {
        "conv_stem": "conv_stem.first_conv.convolution",
        "bn1": "conv_stem.first_conv.normalization",
        "conv_head": "conv_1x1.convolution",
        "bn2": "conv_1x1.normalization",
        "classifier": "classifier",
    },
    {
        "conv_dw": "conv_3x3.convolution",
        "bn1": "conv_3x3.normalization",
        "conv_pw": "reduce_1x1.convolution",
        "bn2": "reduce_1x1.normalization",
    },
    {
        "conv_pw": "expand_1x1.convolution",
        "bn1": "expand_1x1.normalization",
        "conv_dw": "conv_3x3.convolution",
        "bn2": "conv_3x3.normalization",
        "conv_pwl": "reduce_1x1.convolution",
        "bn3": "reduce_1x1.normalization",
    },
    lambda number: f"layer.{number - 1}" if number else "conv_stem",
    r"conv_stem\.first_conv\.|(conv_stem|layer\.\d+)\.(expand_1x1|conv_3x3|reduce_1x1)\.|conv_1x1\.",
)


def module_table(naming: Naming, names: Collection[str]) -> dict[str, str]:
    """The module table of the model with these native names."""
    blocks = {
        (int(match[1]), int(match[2])) for match in (re.match(r"blocks\.(\d+)\.(\d+)\.", n) for n in names) if match
    }
    table = dict(naming.outside)
    for number, (stage, place) in enumerate(sorted(blocks)):
        block = f"blocks.{stage}.{place}"
        inside = naming.inverted if f"{block}.conv_pwl.weight" in names else naming.separable
        table |= {f"{block}.{native}": f"{naming.block(number)}.{foreign}" for native, foreign in inside.items()}
    return table


def to_native(naming: Naming, state: State, names: Collection[str]) -> StateDict:
    table = {foreign: native for native, foreign in module_table(naming, names).items()}
    return rename_modules(rename_keys(state, [(rf"^{naming.prefix}\.", "")]), table)


def from_native(naming: Naming, state: State) -> StateDict:
    """Convert to transformers' names; CheckpointError if the model's blocks differ from those of the network."""
    gated = "se.conv_reduce" in naming.inverted
    if gated != any(".se." in name for name in state):
        kind = "has squeeze-and-excitation in" if gated else "has no squeeze-and-excitation in"
        raise CheckpointError(f"transformers' {naming.prefix} {kind} its blocks, unlike this model")
    return to_transformers(rename_modules(state, module_table(naming, state)), (), naming.known, naming.prefix)


def layout(
    system: str, naming: Naming, act: type[nn.Module], *marks: str, data: Mapping[str, Any], note: str
) -> Layout:
    return Layout(
        system,
        "EfficientNet",
        has_keys(*(rf"({naming.prefix}\.)?{mark}" for mark in marks)),
        partial(to_native, naming),
        partial(from_native, naming),
        ignores={r"segmentation_head\.": "head of semantic segmentation"},
        settings={"style": as_tensorflow(MobileStyle(act))},
        data=data,
        notes=("convolutions pad as TensorFlow does, and batch norms add 1e-3 to the variance", note),
    )


LAYOUTS = (
    layout(
        "transformers",
        EFFICIENTNET,
        nn.SiLU,
        r"embeddings\.batchnorm\.weight",
        r"encoder\.blocks\.0\.depthwise_conv\.depthwise_conv\.weight",
        data={"mean": IMAGENET_MEAN, "std": (0.47853944, 0.4732864, 0.47434163)},
        note="transformers pads every image as is right for the variant's own image size: there its maps are ours; at "
        "other sizes only those of b0 are, if the sides are multiples of 32",
    ),
    layout(
        "transformers-mobilenet_v2",
        MOBILENETV2,
        nn.ReLU6,
        r"conv_stem\.first_conv\.convolution\.weight",
        r"layer\.0\.expand_1x1\.convolution\.weight",
        data=INCEPTION,
        note="the published weights have 1001 classes, of which the first is the background",
    ),
)
