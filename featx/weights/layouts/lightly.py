"""Layout of ResNets that are an `nn.Sequential` of the children of torchvision's ResNet.

0 and 1 are the stem, 4 to 7 the stages, 9 the classifier.
Lightly and other programs of self-supervised learning cut torchvision's ResNets that way.
"""

import re
from collections.abc import Collection

from ...errors import CheckpointError, names_in
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

FROM_NUMBERS: tuple[Rule, ...] = (
    (r"^([4-7])\.", lambda match: f"layer{int(match[1]) - 3}."),
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^9\.", "fc."),
)
TO_NUMBERS: tuple[Rule, ...] = (
    (r"^layer([1-4])\.", lambda match: f"{int(match[1]) + 3}."),
    (r"^conv1\.", "0."),
    (r"^bn1\.", "1."),
    (r"^fc\.", "9."),
)
RESNET = re.compile(r"(0|1|9)\.[a-z_]+$|[4-7]\.\d+\.(conv\d|bn\d|downsample\.[01])\.[a-z_]+$")


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, FROM_NUMBERS)


def from_native(state: State) -> StateDict:
    """Convert to numbers; CheckpointError for a ResNet that torchvision lacks."""
    new = rename_keys(state, TO_NUMBERS)
    if others := [name for name in new if not RESNET.match(name)]:
        raise CheckpointError(f"torchvision has no ResNet of that kind: it would not know {names_in(others)}")
    return new


LAYOUTS = (
    Layout(
        "lightly",
        "ResNet",
        has_keys(r"0\.weight$", r"1\.running_mean$", r"4\.0\.conv1\.weight$", r"7\.0\.bn2\.running_mean$"),
        to_native,
        from_native,
    ),
)
