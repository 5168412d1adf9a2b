"""Layouts of torchvision's MobileNetV2, MobileNetV3, EfficientNet and EfficientNetV2.

torchvision numbers the blocks of a network, and the convolutions of a block in execution order. The structure of the
blocks follows from the native names, from which a table of modules is built for both directions.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict, rename_modules

# A convolution and its norm, or the two convolutions of squeeze-and-excitation.
LayerPair = tuple[str, str]

GATE: LayerPair = ("se.conv_reduce", "se.conv_expand")
BLOCKS: tuple[tuple[LayerPair, ...], ...] = (
    (("conv", "bn1"),),
    (("conv_exp", "bn1"), GATE, ("conv_pwl", "bn2")),
    (("conv_dw", "bn1"), GATE, ("conv_pw", "bn2")),
    (("conv_pw", "bn1"), ("conv_dw", "bn2"), GATE, ("conv_pwl", "bn3")),
)


def blocks(names: Collection[str]) -> Iterator[tuple[int, int, tuple[LayerPair, ...]]]:
    """Stage, index in the stage, and layer pairs of each block, in execution order."""
    parts: dict[tuple[int, int], set[str]] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.((?:se\.)?conv\w*)\.weight$", name):
            parts.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    for (stage, number), convs in sorted(parts.items()):
        (kind,) = (kind for kind in BLOCKS if {first for first, _ in kind if first != GATE[0]} == convs - {*GATE})
        yield stage, number, tuple(pair for pair in kind if pair[0] in convs)


def block_table(native: str, foreign: str, pairs: tuple[LayerPair, ...]) -> ModuleTable:
    """The module table of a block, in which pairs and their layers are numbered."""
    table: ModuleTable = {}
    for number, pair in enumerate(pairs):
        for part, name in zip(pair, ("fc1", "fc2") if pair == GATE else ("0", "1"), strict=True):
            table[f"{native}.{part}"] = f"{foreign}.{number}.{name}"
    return table


STEM: ModuleTable = {"conv_stem": "features.0.0", "bn1": "features.0.1"}


def efficientnet(names: Collection[str]) -> ModuleTable:
    """The module table of EfficientNet, whose blocks are numbered within each stage."""
    table, end = dict(STEM), 1
    for stage, number, pairs in blocks(names):
        end = stage + 2
        table |= block_table(f"blocks.{stage}.{number}", f"features.{stage + 1}.{number}.block", pairs)
    return table | {"conv_head": f"features.{end}.0", "bn2": f"features.{end}.1", "classifier": "classifier.1"}


def mobilenetv2(names: Collection[str]) -> ModuleTable:
    """The module table of MobileNetV2: blocks, and both layers of a block's last pair, are numbered consecutively."""
    table, end = dict(STEM), 1
    for end, (stage, number, pairs) in enumerate(blocks(names), start=2):
        native, foreign, last = f"blocks.{stage}.{number}", f"features.{end - 1}.conv", len(pairs) - 1
        table |= block_table(native, foreign, pairs[:-1])
        table |= {f"{native}.{part}": f"{foreign}.{last + i}" for i, part in enumerate(pairs[-1])}
    return table | {"conv_head": f"features.{end}.0", "bn2": f"features.{end}.1", "classifier": "classifier.1"}


def mobilenetv3(names: Collection[str]) -> ModuleTable:
    """The module table of MobileNetV3, with consecutive block numbers; the last native block is a plain layer there."""
    table = dict(STEM)
    for index, (stage, number, pairs) in enumerate(blocks(names), start=1):
        native, foreign = f"blocks.{stage}.{number}", f"features.{index}"
        if pairs == BLOCKS[0]:
            table |= {f"{native}.conv": f"{foreign}.0", f"{native}.bn1": f"{foreign}.1"}
        else:
            table |= block_table(native, f"{foreign}.block", pairs)
    return table | {"conv_head": "classifier.0", "classifier": "classifier.3"}


def to_native(
    state: State, names: Collection[str], module_table: Callable[[Collection[str]], ModuleTable]
) -> StateDict:
    return rename_modules(state, {foreign: native for native, foreign in module_table(names).items()})


def mobilenetv3_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert to native names; the first linear layer of the classifier becomes a 1x1 convolution."""
    new = to_native(state, names, mobilenetv3)
    head = new.get("conv_head.weight")
    return new if head is None else {**new, "conv_head.weight": head[..., None, None]}


def mobilenetv3_from_native(state: State) -> StateDict:
    new = rename_modules(state, mobilenetv3(state))
    head = new.get("classifier.0.weight")
    return new if head is None else {**new, "classifier.0.weight": head.flatten(1)}


def efficientnet_from_native(state: State) -> StateDict:
    """Convert EfficientNet (with squeeze-and-excitation) or MobileNetV2 (without) to torchvision's names."""
    gated = any(f".{GATE[0]}." in name for name in state)
    return rename_modules(state, (efficientnet if gated else mobilenetv2)(state))


is_mobilenetv2 = has_keys(r"features\.0\.1\.running_mean", r"features\.1\.conv\.0\.1\.running_mean")
is_mobilenetv3 = has_keys(r"features\.0\.1\.running_mean", r"features\.1\.block\.0\.1\.running_mean")
is_efficientnet = has_keys(r"features\.0\.1\.running_mean", r"features\.1\.0\.block\.0\.1\.running_mean")


def has_larger_epsilon(state: State) -> bool:
    """Whether an EfficientNet is one of B5 to B7 (at least three blocks in the first stage) or V2 (no depthwise there).

    torchvision's norm eps is 1e-3 for these, and 1e-5 for B0 to B4.
    """
    first = state.get("features.1.0.block.0.0.weight")
    dense = first is not None and first.shape[1:2] > (1,)
    return is_efficientnet(state) and ("features.1.2.block.0.0.weight" in state or dense)


def is_plain_efficientnet(state: State) -> bool:
    return is_efficientnet(state) and not has_larger_epsilon(state)


EPSILON = {"norm_eps": 1e-3}
EFFICIENTNET = partial(to_native, module_table=efficientnet)
LAYOUTS = (
    Layout("torchvision", "EfficientNet", is_plain_efficientnet, EFFICIENTNET, efficientnet_from_native, data=IMAGENET),
    Layout(
        "torchvision",
        "EfficientNet",
        has_larger_epsilon,
        EFFICIENTNET,
        efficientnet_from_native,
        settings=EPSILON,
        data=IMAGENET,
    ),
    Layout(
        "torchvision",
        "EfficientNet",
        is_mobilenetv2,
        partial(to_native, module_table=mobilenetv2),
        efficientnet_from_native,
        data=IMAGENET,
    ),
    Layout(
        "torchvision",
        "MobileNetV3",
        is_mobilenetv3,
        mobilenetv3_to_native,
        mobilenetv3_from_native,
        settings=EPSILON,
        data=IMAGENET,
    ),
)
