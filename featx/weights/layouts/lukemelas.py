"""Layout of lukemelas/EfficientNet-PyTorch, whose blocks are numbered over all stages.

Its published files are TensorFlow's weights: they need TensorFlow's padding and norms, as the `tf_` variants have them.
"""

import re
from collections.abc import Collection

from ...models.efficientnet import RELU6, SILU
from ...models.layers.mobile import as_tensorflow
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_modules

# native and foreign modules of a block with expansion, and of one without
EXPANDED = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "se.conv_reduce": "_se_reduce",
    "se.conv_expand": "_se_expand",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
SEPARABLE = {
    "conv_dw": "_depthwise_conv",
    "bn1": "_bn1",
    "se.conv_reduce": "_se_reduce",
    "se.conv_expand": "_se_expand",
    "conv_pw": "_project_conv",
    "bn2": "_bn2",
}
STEM_AND_HEAD = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}


def module_table(names: Collection[str]) -> ModuleTable:
    """From native module paths to foreign ones."""
    blocks = {(int(m[1]), int(m[2])) for name in names if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", name))}
    table: ModuleTable = dict(STEM_AND_HEAD)
    for number, (stage, index) in enumerate(sorted(blocks)):
        native = f"blocks.{stage}.{index}"
        pairs = EXPANDED if f"{native}.conv_pwl.weight" in names else SEPARABLE
        table |= {f"{native}.{ours}": f"_blocks.{number}.{theirs}" for ours, theirs in pairs.items()}
    return table


def to_native(state: State, names: Collection[str]) -> StateDict:
    return rename_modules(state, {theirs: ours for ours, theirs in module_table(names).items()})


def from_native(state: State) -> StateDict:
    return rename_modules(state, module_table(state.keys()))


is_efficientnet = has_keys(r"_conv_stem\.weight$", r"_bn0\.running_mean$", r"_blocks\.0\._depthwise_conv\.weight$")
has_gate = has_keys(r"_blocks\.0\._se_reduce\.weight$")
NOTES = ("padding and norms as in TensorFlow, where the published weights come from",)
LAYOUTS = (
    Layout(
        "lukemelas",
        "EfficientNet",
        lambda state: is_efficientnet(state) and has_gate(state),
        to_native,
        from_native,
        settings={"style": as_tensorflow(SILU)},
        notes=NOTES,
    ),
    Layout(
        "lukemelas",
        "EfficientNet",
        lambda state: is_efficientnet(state) and not has_gate(state),
        to_native,
        from_native,
        settings={"style": as_tensorflow(RELU6)},
        notes=(*NOTES, "EfficientNet-Lite: no squeeze-and-excitation, ReLU6"),
    ),
)
