"""Layouts of lukemelas' EfficientNet (package efficientnet-pytorch) and tonylins' MobileNetV2.

Both number blocks consecutively. The weights of EfficientNet come from TensorFlow, whose padding and norm eps they
need. efficientnet-pytorch computes the padding for one size of images; here it follows each image, as in TensorFlow.
Its Lite variants, of derived packages, have no squeeze-and-excitation, and ReLU6.
"""

import re
from collections.abc import Collection
from functools import partial

from torch import nn

from ...errors import CheckpointError, names_in
from ...models.layers.mobile import MobileStyle, as_tensorflow
from ...preprocessing import INCEPTION
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_modules
from .torchvision_mobile import GATE, LayerPair, blocks

GATES = dict(zip(GATE, ("_se_reduce", "_se_expand"), strict=True))
CONVS = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
SEPARABLE = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv"}
OUTSIDE: ModuleTable = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}


def efficientnet(names: Collection[str]) -> ModuleTable:
    """The module table of EfficientNet. The norm of a block's last convolution is `_bn2`, whatever the block."""
    table = dict(OUTSIDE)
    for number, (stage, place, pairs) in enumerate(blocks(names)):
        for pair in pairs:
            foreign = block_names(pair, inverted=("conv_pwl", "bn3") in pairs)
            for native, name in zip(pair, foreign, strict=True):
                table[f"blocks.{stage}.{place}.{native}"] = f"_blocks.{number}.{name}"
    return table


def block_names(pair: LayerPair, *, inverted: bool) -> LayerPair:
    """Names of a convolution and its norm, or of the two convolutions of squeeze-and-excitation."""
    if pair == GATE:
        return GATES[pair[0]], GATES[pair[1]]
    conv = (CONVS if inverted else SEPARABLE)[pair[0]]
    return conv, f"_bn{list(CONVS.values()).index(conv)}"


def mobilenetv2(names: Collection[str]) -> ModuleTable:
    """The module table of MobileNetV2: an activation after each norm but the last counts as a layer of a block."""
    table: ModuleTable = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    for number, (stage, place, pairs) in enumerate(blocks(names), start=1):
        for index, pair in enumerate(pairs):
            for offset, native in enumerate(pair):
                table[f"blocks.{stage}.{place}.{native}"] = f"features.{number}.conv.{3 * index + offset}"
    return table | {"conv_head": "conv.0", "bn2": "conv.1", "classifier": "classifier"}


def inverse(table: ModuleTable) -> ModuleTable:
    return {foreign: native for native, foreign in table.items()}


def require_rows(names: Collection[str], *, gated: bool, program: str) -> None:
    """Raise CheckpointError for blocks that are not separable or inverted, or that have gates unless `gated`."""
    others = [name for name in names if re.search(r"\.conv(_exp)?\.weight$", name)]
    others += [name for name in names if ".se." in name and not gated]
    if others:
        raise CheckpointError(f"{program} has no place for these tensors: {names_in(others)}")


def efficientnet_to_native(state: State, names: Collection[str]) -> StateDict:
    return rename_modules(state, inverse(efficientnet(names)))


def efficientnet_from_native(state: State) -> StateDict:
    """Convert to lukemelas' names; CheckpointError for fused or dense blocks."""
    require_rows(state, gated=True, program="efficientnet-pytorch")
    return rename_modules(state, efficientnet(state))


def mobilenetv2_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert to native names; older files have the last convolution among the features, and a dropout before fc."""
    table = inverse(mobilenetv2(names))
    last = 1 + sum(1 for _ in blocks(names))
    older = {f"features.{last}.0": "conv_head", f"features.{last}.1": "bn2", "classifier.1": "classifier"}
    return rename_modules(state, table | older)


def mobilenetv2_from_native(state: State) -> StateDict:
    """Convert to tonylins' names; CheckpointError for squeeze-and-excitation, and for fused or dense blocks."""
    require_rows(state, gated=False, program="tonylins' MobileNetV2")
    return rename_modules(state, mobilenetv2(state))


is_lukemelas = has_keys(r"_conv_stem\.weight$", r"_bn0\.weight$", r"_blocks\.0\._depthwise_conv\.weight$")
has_gates = has_keys(r"_blocks\.0\._se_reduce\.weight$")
is_tonylins = has_keys(r"features\.0\.1\.weight$", r"features\.1\.conv\.4\.weight$", r"features\.2\.conv\.7\.weight$")


def is_gated(state: State) -> bool:
    return is_lukemelas(state) and has_gates(state)


def is_lite(state: State) -> bool:
    return is_lukemelas(state) and not has_gates(state)


PADDING = "padding follows the size of each image, as in TensorFlow"
LUKEMELAS = partial(
    Layout,
    "lukemelas",
    "EfficientNet",
    to_native=efficientnet_to_native,
    from_native=efficientnet_from_native,
    notes=(PADDING,),
)
LAYOUTS = (
    LUKEMELAS(recognizes=is_gated, settings={"style": as_tensorflow(MobileStyle(nn.SiLU))}),
    LUKEMELAS(recognizes=is_lite, settings={"style": as_tensorflow(MobileStyle(nn.ReLU6))}, data=INCEPTION),
    Layout("tonylins", "EfficientNet", is_tonylins, mobilenetv2_to_native, mobilenetv2_from_native),
)
