"""Layout of the children of a ResNet in a Sequential, as Lightly keeps a backbone without its classifier."""

from collections.abc import Collection

from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

TO_NATIVE: tuple[Rule, ...] = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^([4-7])\.", lambda match: f"layer{int(match[1]) - 3}."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, TO_NATIVE)


LAYOUTS = (
    Layout(
        "lightly",
        "ResNet",
        has_keys(r"0\.weight$", r"1\.running_mean$", r"4\.0\.conv1\.weight$", r"7\.0\.bn1\.running_mean$"),
        to_native,
    ),
)
