"""torchvision's names of RegNet, as its models save them: a block has a transform `f` of convolutions a, b and c."""

from collections.abc import Collection

from ...preprocessing import IMAGENET
from ..layout import Layout, has
from ..names import Rule, renamed
from ..state import State, StateDict

RULES: tuple[Rule, ...] = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
    (r"\.f\.([abc])\.", lambda match: f".conv{'abc'.index(match[1]) + 1}."),
    (r"\.f\.se\.", ".se."),
    (r"\.proj\.", ".downsample."),
    (r"\.(conv\d|downsample)\.0\.", r".\1.conv."),
    (r"\.(conv\d|downsample)\.1\.", r".\1.bn."),
    (r"^fc\.", "head.fc."),
)
TO_TORCHVISION: tuple[Rule, ...] = (
    (r"^stem\.conv\.", "stem.0."),
    (r"^stem\.bn\.", "stem.1."),
    (r"^s(\d)\.b(\d+)\.", lambda match: f"trunk_output.block{match[1]}.block{match[1]}-{int(match[2]) - 1}."),
    (r"\.(conv\d|downsample)\.conv\.", r".\1.0."),
    (r"\.(conv\d|downsample)\.bn\.", r".\1.1."),
    (r"\.conv([123])\.", lambda match: f".f.{'abc'[int(match[1]) - 1]}."),
    (r"\.se\.", ".f.se."),
    (r"\.downsample\.", ".proj."),
    (r"^head\.fc\.", "fc."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return renamed(state, RULES)


def from_native(state: State) -> StateDict:
    return renamed(state, TO_TORCHVISION)


is_regnet = has(r"stem\.1\.running_mean$", r"trunk_output\.block1\.block1-0\.f\.a\.0\.weight$")

LAYOUTS = (Layout("torchvision", "RegNet", is_regnet, to_native, from_native, data=IMAGENET),)
