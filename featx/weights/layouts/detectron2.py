"""Layouts of detectron2's ResNet, alone or in a detector.

A detector has it under `backbone.bottom_up.`, or under `backbone.` without a feature pyramid. The norm of a convolution
is a part of it. Frozen norms have no counters. The models of detectron2's zoo start from MSRA's ResNets of Caffe, which
have the stride of a bottleneck in its first convolution, and expect BGR images with pixels in [0, 255] minus the mean:
that is the layout `detectron2-msra`. Neither names nor shapes tell the two apart.
"""

import re
from collections.abc import Collection

from ...errors import CheckpointError, names_in
from ...models.layers.residual import Residual
from ...preprocessing import IMAGENET_MEAN
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

PREFIX = r"(backbone\.)?(bottom_up\.)?"
RESNET: tuple[Rule, ...] = (
    (rf"^{PREFIX}", ""),
    (r"^(stem\.fc|linear)\.", "fc."),
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.weight$", ".downsample.0.weight"),
)
TO_RESNET: tuple[Rule, ...] = (
    (r"^fc\.", "linear."),
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"^(res.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
NAMES = r"linear\.|stem\.conv1\.(norm\.\w+|weight)$|res[2-5]\.\d+\.(conv\d|shortcut)\.(norm\.\w+|weight)$"


def to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, RESNET)


def from_native(state: State) -> StateDict:
    """Convert to the names of a ResNet alone; CheckpointError for a ResNet that detectron2 lacks."""
    new = rename_keys(state, TO_RESNET)
    if unsupported := [name for name in new if not re.match(NAMES, name)]:
        raise CheckpointError(
            f"detectron2's ResNet has no place for {len(unsupported)} of {len(new)} tensors, so that it cannot hold "
            f"this model: {names_in(unsupported)}"
        )
    return new


is_resnet = has_keys(
    rf"{PREFIX}stem\.conv1\.weight$", rf"{PREFIX}stem\.conv1\.norm\.weight$", rf"{PREFIX}res2\.0\.conv1\.norm\.weight$"
)


def may_be_msra(state: State) -> bool:
    """Whether the blocks are bottlenecks without groups, the only ones that detectron2 takes from MSRA."""
    kernels = [t for name, t in state.items() if re.match(rf"{PREFIX}res2\.0\.conv2\.weight$", name)]
    bottleneck = has_keys(rf"{PREFIX}res2\.0\.conv3\.weight$")
    return is_resnet(state) and bottleneck(state) and all(t.shape[:1] == t.shape[1:2] for t in kernels)


DETECTOR = {
    rf"(?!{PREFIX}(stem|res\d)\.|linear\.)": "outside the ResNet",
}
LAYOUTS = (
    Layout(
        "detectron2",
        "ResNet",
        is_resnet,
        to_native,
        from_native,
        ignores=DETECTOR,
        notes=("the stride of a block is in its 3x3 convolution",),
    ),
    Layout(
        "detectron2-msra",
        "ResNet",
        may_be_msra,
        to_native,
        from_native,
        ignores=DETECTOR,
        settings={"style": Residual(stride_in_1x1=True)},
        data={"mean": IMAGENET_MEAN, "std": (1 / 255,) * 3, "channel_order": "bgr"},
        notes=("the stride of a block is in its first 1x1 convolution; images are BGR",),
    ),
)
