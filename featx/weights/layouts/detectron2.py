"""Layout of detectron2's ResNets, bare or as `backbone.bottom_up` of a detector (facebookresearch/detectron2).

Frozen batch norms have no counters. Weights that were converted from Caffe (R-50.pkl of MSRA) expect BGR images in
[0, 255] without scaling, and strides in the first 1x1 convolution of a stage; torchvision's (R-50.pkl of torchvision)
expect RGB and strides in the 3x3 convolution, as native ResNets. The names do not tell which.
"""

from collections.abc import Collection

from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

TO_NATIVE: tuple[Rule, ...] = (
    (r"^(stem|res\d+)\.(.*)conv(\d)\.norm\.", r"\1.\2bn\3."),
    (r"^stem\.", ""),
    (r"^res(\d+)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^linear\.", "fc."),
)
FROM_NATIVE: tuple[Rule, ...] = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^fc\.", "linear."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, TO_NATIVE)


def from_native(state: State) -> StateDict:
    """Convert to detectron2's names, without counters, which its frozen batch norms lack."""
    return rename_keys({n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}, FROM_NATIVE)


LAYOUTS = (
    Layout(
        "detectron2",
        "ResNet",
        has_keys(r"stem\.conv1\.weight$", r"stem\.conv1\.norm\.weight$", r"res2\.0\.conv1\.norm\.running_mean$"),
        to_native,
        from_native,
        notes=("weights converted from Caffe expect BGR images in [0, 255], and strides in the first 1x1 convolution",),
    ),
)
