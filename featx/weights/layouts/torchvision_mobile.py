"""torchvision's names of MobileNetV2, MobileNetV3, EfficientNet and EfficientNetV2, as its models save them.

It numbers what we name: a network's blocks, and within a block the convolutions in the order in which they run. How
blocks are made shows in a model's own names; from these a table of modules is drawn up, which serves both directions.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial

from ...preprocessing import IMAGENET
from ..layout import Layout, has
from ..state_dict_keys import State, StateDict, moved

# From our names of modules to torchvision's.
Table = dict[str, str]
# A convolution and the norm behind it, or the two of squeeze-and-excitation.
Pair = tuple[str, str]

GATE: Pair = ("se.conv_reduce", "se.conv_expand")
BLOCKS: tuple[tuple[Pair, ...], ...] = (
    (("conv", "bn1"),),
    (("conv_exp", "bn1"), GATE, ("conv_pwl", "bn2")),
    (("conv_dw", "bn1"), GATE, ("conv_pw", "bn2")),
    (("conv_pw", "bn1"), ("conv_dw", "bn2"), GATE, ("conv_pwl", "bn3")),
)


def blocks(names: Collection[str]) -> Iterator[tuple[int, int, tuple[Pair, ...]]]:
    """Stage, number in the stage, and contents of every block, in running order."""
    parts: dict[tuple[int, int], set[str]] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.((?:se\.)?conv\w*)\.weight$", name):
            parts.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    for (stage, number), convs in sorted(parts.items()):
        (kind,) = (kind for kind in BLOCKS if {first for first, _ in kind if first != GATE[0]} == convs - {*GATE})
        yield stage, number, tuple(pair for pair in kind if pair[0] in convs)


def paired(ours: str, theirs: str, pairs: tuple[Pair, ...]) -> Table:
    """The modules of a block: the pairs are numbered, and what is in each."""
    table: Table = {}
    for number, pair in enumerate(pairs):
        for part, name in zip(pair, ("fc1", "fc2") if pair == GATE else ("0", "1"), strict=True):
            table[f"{ours}.{part}"] = f"{theirs}.{number}.{name}"
    return table


STEM: Table = {"conv_stem": "features.0.0", "bn1": "features.0.1"}


def efficientnet(names: Collection[str]) -> Table:
    """Of EfficientNet, whose blocks are numbered within their stages."""
    table, end = dict(STEM), 1
    for stage, number, pairs in blocks(names):
        end = stage + 2
        table |= paired(f"blocks.{stage}.{number}", f"features.{stage + 1}.{number}.block", pairs)
    return table | {"conv_head": f"features.{end}.0", "bn2": f"features.{end}.1", "classifier": "classifier.1"}


def mobilenetv2(names: Collection[str]) -> Table:
    """Of MobileNetV2, whose blocks are numbered throughout, and their last convolution and norm each for itself."""
    table, end = dict(STEM), 1
    for end, (stage, number, pairs) in enumerate(blocks(names), start=2):
        ours, theirs, last = f"blocks.{stage}.{number}", f"features.{end - 1}.conv", len(pairs) - 1
        table |= paired(ours, theirs, pairs[:-1])
        table |= {f"{ours}.{part}": f"{theirs}.{last + i}" for i, part in enumerate(pairs[-1])}
    return table | {"conv_head": f"features.{end}.0", "bn2": f"features.{end}.1", "classifier": "classifier.1"}


def mobilenetv3(names: Collection[str]) -> Table:
    """Of MobileNetV3, whose blocks are numbered throughout; the last of ours is no block there."""
    table = dict(STEM)
    for index, (stage, number, pairs) in enumerate(blocks(names), start=1):
        ours, theirs = f"blocks.{stage}.{number}", f"features.{index}"
        if pairs == BLOCKS[0]:
            table |= {f"{ours}.conv": f"{theirs}.0", f"{ours}.bn1": f"{theirs}.1"}
        else:
            table |= paired(ours, f"{theirs}.block", pairs)
    return table | {"conv_head": "classifier.0", "classifier": "classifier.3"}


def to_native(state: State, names: Collection[str], draw_up: Callable[[Collection[str]], Table]) -> StateDict:
    return moved(state, {theirs: ours for ours, theirs in draw_up(names).items()})


def mobilenetv3_to_native(state: State, names: Collection[str]) -> StateDict:
    """Its first linear layer is a 1x1 convolution here."""
    new = to_native(state, names, mobilenetv3)
    head = new.get("conv_head.weight")
    return new if head is None else {**new, "conv_head.weight": head[..., None, None]}


def mobilenetv3_from_native(state: State) -> StateDict:
    new = moved(state, mobilenetv3(state))
    head = new.get("classifier.0.weight")
    return new if head is None else {**new, "classifier.0.weight": head.flatten(1)}


def efficientnet_from_native(state: State) -> StateDict:
    """Of both networks of the class: EfficientNet has gates, MobileNetV2 has none."""
    gated = any(f".{GATE[0]}." in name for name in state)
    return moved(state, (efficientnet if gated else mobilenetv2)(state))


is_mobilenetv2 = has(r"features\.0\.1\.running_mean", r"features\.1\.conv\.0\.1\.running_mean")
is_mobilenetv3 = has(r"features\.0\.1\.running_mean", r"features\.1\.block\.0\.1\.running_mean")
is_efficientnet = has(r"features\.0\.1\.running_mean", r"features\.1\.0\.block\.0\.1\.running_mean")


def has_larger_epsilon(state: State) -> bool:
    """Whether an EfficientNet is one of B5 to B7, with three blocks or more in its first stage, or of V2.

    Torchvision's norms of these add 1e-3 to the variance, of B0 to B4 1e-5. V2's first stage is not depthwise.
    """
    first = state.get("features.1.0.block.0.0.weight")
    dense = first is not None and first.shape[1:2] > (1,)
    return is_efficientnet(state) and ("features.1.2.block.0.0.weight" in state or dense)


def is_plain_efficientnet(state: State) -> bool:
    return is_efficientnet(state) and not has_larger_epsilon(state)


EPSILON = {"norm_eps": 1e-3}
EFFICIENTNET = partial(to_native, draw_up=efficientnet)
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
        partial(to_native, draw_up=mobilenetv2),
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
