"""Layout of tonylins/pytorch-mobilenet-v2 and of the programs that follow it: MobileNetV2 before torchvision had one.

Layers of a block are numbered with their activations: convolutions are 0, 3 and 6, norms 1, 4 and 7.
"""

from collections.abc import Collection

from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_modules
from .torchvision_mobile import STEM, blocks

POSITIONS = (("0", "1"), ("3", "4"), ("6", "7"))


def module_table(names: Collection[str], head: tuple[str, str, str]) -> ModuleTable:
    """From native module paths to foreign ones. head: the last convolution, its norm, and the classifier."""
    table = dict(STEM) | dict(zip(("conv_head", "bn2", "classifier"), head, strict=True))
    for number, (stage, index, pairs) in enumerate(blocks(names), start=1):
        for pair, positions in zip(pairs, POSITIONS, strict=False):
            for part, position in zip(pair, positions, strict=True):
                table[f"blocks.{stage}.{index}.{part}"] = f"features.{number}.conv.{position}"
    return table


def head_of(state: State, names: Collection[str]) -> tuple[str, str, str]:
    """The last layers: in `features` or in a module of their own, the classifier alone or after a dropout."""
    last = f"features.{len(list(blocks(names))) + 1}"
    conv = "conv" if "conv.0.weight" in state else last
    return f"{conv}.0", f"{conv}.1", "classifier.1" if "classifier.1.weight" in state else "classifier"


def to_native(state: State, names: Collection[str]) -> StateDict:
    table = module_table(names, head_of(state, names))
    return rename_modules(state, {foreign: native for native, foreign in table.items()})


def from_native(state: State) -> StateDict:
    return rename_modules(state, module_table(state.keys(), head_of({}, state.keys())))


LAYOUTS = (
    Layout(
        "tonylins",
        "EfficientNet",
        has_keys(
            r"features\.0\.1\.running_mean", r"features\.1\.conv\.1\.running_mean", r"features\.2\.conv\.6\.weight"
        ),
        to_native,
        from_native,
    ),
)
