"""Layouts of MindCV's MobileNetV2, MobileNetV3, EfficientNet and EfficientNetV2, as MindSpore saves them.

MindCV numbers the parts of a network, and the layers of a block including activations. The structure of the blocks
follows from the native names, from which a table of modules is built for both directions.
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
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_modules
from .mindcv import IGNORES, SYSTEM, recipe, to_mindspore, to_pytorch

# The layers of each block type, in execution order; SE is optional.
ACT, SE = "activation", "se"
BLOCKS = (
    ("conv", "bn1", ACT),
    ("conv_exp", "bn1", ACT, SE, "conv_pwl", "bn2"),
    ("conv_dw", "bn1", ACT, SE, "conv_pw", "bn2"),
    ("conv_pw", "bn1", ACT, "conv_dw", "bn2", ACT, SE, "conv_pwl", "bn3"),
)


def blocks(names: Collection[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Stage, index in the stage, and layers of each block, in execution order."""
    parts: dict[tuple[int, int], set[str]] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(\w+)\.", name):
            parts.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    for (stage, number), layers in sorted(parts.items()):
        (block_type,) = (block for block in BLOCKS if {*block} - {ACT, SE} == layers - {SE})
        yield stage, number, [layer for layer in block_type if layer != SE or SE in layers]


def block_table(native: str, foreign: str, layers: list[str], first: int = 0) -> ModuleTable:
    """The module table of a block, whose layers are numbered from `first`."""
    table: ModuleTable = {}
    for number, layer in enumerate(layers, start=first):
        parts = [".conv_reduce", ".conv_expand"] if layer == SE else [""]
        table |= {f"{native}.{layer}{part}": f"{foreign}.{number}{part}" for part in parts if layer != ACT}
    return table


STEM: ModuleTable = {"conv_stem": "features.0", "bn1": "features.1"}
FIRST = 3  # after the stem's convolution, norm and activation


def mobilenetv2(names: Collection[str]) -> ModuleTable:
    """The module table of MobileNetV2, with consecutive block numbers."""
    table, after = dict(STEM), FIRST
    for after, (stage, number, layers) in enumerate(blocks(names), start=FIRST + 1):
        table |= block_table(f"blocks.{stage}.{number}", f"features.{after - 1}.layers", layers)
    return table | {"conv_head": f"features.{after}", "bn2": f"features.{after + 1}", "classifier": "classifier.1"}


def mobilenetv3(names: Collection[str]) -> ModuleTable:
    """The module table of MobileNetV3, with consecutive block numbers; the last native block is a plain layer there."""
    table = dict(STEM)
    for place, (stage, number, layers) in enumerate(blocks(names), start=FIRST):
        native = f"blocks.{stage}.{number}"
        if layers[0] == "conv":
            table |= block_table(native, "features", layers, first=place)
        else:
            table |= block_table(native, f"features.{place}.layers", layers)
    return table | {"conv_head": "classifier.0", "classifier": "classifier.3"}


def efficientnet(names: Collection[str]) -> ModuleTable:
    """The module table of EfficientNet, whose blocks are numbered within each stage."""
    table, after = dict(STEM), FIRST
    for stage, number, layers in blocks(names):
        after = FIRST + stage + 1
        table |= block_table(f"blocks.{stage}.{number}", f"features.{after - 1}.{number}.block", layers)
    return table | {"conv_head": f"features.{after}", "bn2": f"features.{after + 1}", "classifier": "mlp_head"}


def to_native(
    state: State, names: Collection[str], module_table: Callable[[Collection[str]], ModuleTable]
) -> StateDict:
    return rename_modules(to_pytorch(state), {foreign: native for native, foreign in module_table(names).items()})


def mobilenetv3_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert to native names; the first linear layer of the classifier becomes a 1x1 convolution."""
    new = to_native(state, names, mobilenetv3)
    head = new.get("conv_head.weight")
    return new if head is None else {**new, "conv_head.weight": head[..., None, None]}


def mobilenetv3_from_native(state: State) -> StateDict:
    new = rename_modules(to_mindspore(state), mobilenetv3(state))
    head = new.get("classifier.0.weight")
    return new if head is None else {**new, "classifier.0.weight": head.flatten(1)}


def efficientnet_from_native(state: State) -> StateDict:
    """Convert EfficientNet or MobileNetV2 (neither squeeze-and-excitation nor fused blocks) to MindCV's names."""
    efficient = any(re.match(r"blocks\.\d+\.\d+\.(se|conv|conv_exp)\.", name) for name in state)
    return rename_modules(to_mindspore(state), (efficientnet if efficient else mobilenetv2)(state))


is_mobilenetv2 = is_mobilenetv3 = has_keys(r"features[._]1\.gamma$", r"features[._]3\.layers\.0\.weight$")
is_efficientnet = has_keys(r"features[._]1\.gamma$", r"features[._]3\.0\.block\.0\.weight$")


def has_larger_epsilon(state: State) -> bool:
    """Whether an EfficientNet is at least 1.6 times as wide as B0, as B5 to B7 are; V2's first stage is not depthwise.

    MindCV's norm eps is 1e-3 for these, and 1e-5 for the others.
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
        partial(to_native, module_table=efficientnet),
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
        partial(to_native, module_table=efficientnet),
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
        partial(to_native, module_table=mobilenetv2),
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
