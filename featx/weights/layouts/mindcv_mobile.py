"""MindCV's names of MobileNetV2, MobileNetV3, EfficientNet and EfficientNetV2, as MindSpore saves them.

It numbers what we name: a network's parts, and the layers of a block, activations among them. How blocks are made shows
in a model's own names; from these a table of modules is drawn up, which serves both directions.
https://github.com/mindspore-lab/mindcv/tree/main/mindcv/models
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial

from ...models.efficientnet import SILU
from ...models.layers.mobile import as_tensorflow
from ...models.layers.padding import same_conv, same_depthwise_conv
from ...models.mobilenetv3 import HARD
from ..layout import Layout, has
from ..state_dict_keys import State, StateDict, moved
from .mindcv import IGNORES, SYSTEM, foreign, plain, recipe

# From our names of modules to MindCV's.
Table = dict[str, str]

# The layers of each kind of block, in running order. SE is left out where a block has none.
ACT, SE = "activation", "se"
BLOCKS = (
    ("conv", "bn1", ACT),
    ("conv_exp", "bn1", ACT, SE, "conv_pwl", "bn2"),
    ("conv_dw", "bn1", ACT, SE, "conv_pw", "bn2"),
    ("conv_pw", "bn1", ACT, "conv_dw", "bn2", ACT, SE, "conv_pwl", "bn3"),
)


def blocks(names: Collection[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Stage, number in the stage, and layers of every block, in running order."""
    parts: dict[tuple[int, int], set[str]] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)\.", name):
            parts.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    for (stage, number), found in sorted(parts.items()):
        (kind,) = (layers for layers in BLOCKS if {*layers} - {ACT, SE} == found - {SE})
        yield stage, number, [layer for layer in kind if layer != SE or SE in found]


def numbered(ours: str, theirs: str, layers: list[str], first: int = 0) -> Table:
    """The modules of a block, or of its squeeze-and-excitation; its layers are numbered."""
    table: Table = {}
    for number, layer in enumerate(layers, start=first):
        parts = [".conv_reduce", ".conv_expand"] if layer == SE else [""]
        table |= {f"{ours}.{layer}{part}": f"{theirs}.{number}{part}" for part in parts if layer != ACT}
    return table


STEM: Table = {"conv_stem": "features.0", "bn1": "features.1"}
FIRST = 3  # behind the stem's convolution, norm and activation


def mobilenetv2(names: Collection[str]) -> Table:
    """Of MobileNetV2, whose blocks are numbered throughout."""
    table, after = dict(STEM), FIRST
    for after, (stage, number, layers) in enumerate(blocks(names), start=FIRST + 1):
        table |= numbered(f"blocks.{stage}.{number}", f"features.{after - 1}.layers", layers)
    return table | {"conv_head": f"features.{after}", "bn2": f"features.{after + 1}", "classifier": "classifier.1"}


def mobilenetv3(names: Collection[str]) -> Table:
    """Of MobileNetV3, whose blocks are numbered throughout; the last of ours is no block there."""
    table = dict(STEM)
    for place, (stage, number, layers) in enumerate(blocks(names), start=FIRST):
        ours = f"blocks.{stage}.{number}"
        if layers[0] == "conv":
            table |= numbered(ours, "features", layers, first=place)
        else:
            table |= numbered(ours, f"features.{place}.layers", layers)
    return table | {"conv_head": "classifier.0", "classifier": "classifier.3"}


def efficientnet(names: Collection[str]) -> Table:
    """Of EfficientNet, whose blocks are numbered within their stages."""
    table, after = dict(STEM), FIRST
    for stage, number, layers in blocks(names):
        after = FIRST + stage + 1
        table |= numbered(f"blocks.{stage}.{number}", f"features.{after - 1}.{number}.block", layers)
    return table | {"conv_head": f"features.{after}", "bn2": f"features.{after + 1}", "classifier": "mlp_head"}


def to_native(state: State, names: Collection[str], draw_up: Callable[[Collection[str]], Table]) -> StateDict:
    return moved(plain(state), {theirs: ours for ours, theirs in draw_up(names).items()})


def mobilenetv3_to_native(state: State, names: Collection[str]) -> StateDict:
    """Its first linear layer is a 1x1 convolution here."""
    new = to_native(state, names, mobilenetv3)
    head = new.get("conv_head.weight")
    return new if head is None else {**new, "conv_head.weight": head[..., None, None]}


def mobilenetv3_from_native(state: State) -> StateDict:
    new = moved(foreign(state), mobilenetv3(state))
    head = new.get("classifier.0.weight")
    return new if head is None else {**new, "classifier.0.weight": head.flatten(1)}


def efficientnet_from_native(state: State) -> StateDict:
    """Of both networks of the class: MobileNetV2 has neither squeeze-and-excitation nor dense blocks."""
    other = any(re.match(r"blocks\.\d+\.\d+\.(se|conv|conv_exp)\.", name) for name in state)
    return moved(foreign(state), (efficientnet if other else mobilenetv2)(state))


is_mobilenetv2 = is_mobilenetv3 = has(r"features[._]1\.gamma$", r"features[._]3\.layers\.0\.weight$")
is_efficientnet = has(r"features[._]1\.gamma$", r"features[._]3\.0\.block\.0\.weight$")


def has_larger_epsilon(state: State) -> bool:
    """Whether an EfficientNet is at least 1.6 times as wide as B0, as B5 to B7 are.

    MindCV's norms of these add 1e-3 to the variance, of the others 1e-5. V2's first stage is not depthwise.
    """
    if not is_efficientnet(state):
        return False
    shapes = {name.replace("features_", "features.", 1): tensor.shape for name, tensor in state.items()}
    depthwise = tuple(shapes.get("features.3.0.block.0.weight", ())[1:2]) == (1,)
    return depthwise and tuple(shapes.get("features.4.0.block.7.weight", ())[:1]) >= (40,)


def is_plain_efficientnet(state: State) -> bool:
    return is_efficientnet(state) and not has_larger_epsilon(state)


SAME = replace(SILU, conv=same_conv)
CONVOLUTIONS = "strided convolutions are padded as TensorFlow does"
LAYOUTS = (
    Layout(
        SYSTEM,
        "EfficientNet",
        is_plain_efficientnet,
        partial(to_native, draw_up=efficientnet),
        efficientnet_from_native,
        ignores=IGNORES,
        settings={"style": SAME},
        data=recipe("bicubic", crop=0.875),
        notes=(CONVOLUTIONS,),
    ),
    Layout(
        SYSTEM,
        "EfficientNet",
        has_larger_epsilon,
        partial(to_native, draw_up=efficientnet),
        efficientnet_from_native,
        ignores=IGNORES,
        settings={"style": as_tensorflow(SILU)},
        data=recipe("bicubic", crop=0.875),
        notes=(CONVOLUTIONS, "norms add 1e-3 to the variance"),
    ),
    Layout(
        SYSTEM,
        "EfficientNet",
        is_mobilenetv2,
        partial(to_native, draw_up=mobilenetv2),
        efficientnet_from_native,
        ignores=IGNORES,
        data=recipe("bilinear", crop=0.875),
    ),
    Layout(
        SYSTEM,
        "MobileNetV3",
        is_mobilenetv3,
        mobilenetv3_to_native,
        mobilenetv3_from_native,
        ignores=IGNORES,
        settings={"style": replace(HARD, conv=same_depthwise_conv)},
        data=recipe("bilinear", crop=0.875),
        notes=("depthwise convolutions are padded as TensorFlow does",),
    ),
)
