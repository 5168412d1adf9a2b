"""Layout of the ResNet-RS of Keras 2 (keras.applications.resnet_rs), whose layers compute as the native ones do.

Convolutions with a stride are padded at both sides, unlike those of Keras's other networks. Keras 3 has no ResNet-RS.
https://arxiv.org/abs/2103.07579
"""

from collections.abc import Collection

import torch

from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys
from .keras import COUNTER, DENSE, weight

# Native names of the stem's convolutions and norms, in running order.
STEM = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"), ("maxpool.0", "maxpool.1"))
RULES: tuple[Rule, ...] = (
    (r"/kernel$", "/weight"),
    (r"/gamma$", "/weight"),
    (r"/beta$", "/bias"),
    (r"/moving_mean$", "/running_mean"),
    (r"/moving_variance$", "/running_var"),
    *((rf"^stem_\d+_stem_conv_{i}/", f"{conv}.") for i, (conv, _) in enumerate(STEM, 1)),
    *((rf"^stem_\d+_stem_batch_norm_{i}/", f"{norm}.") for i, (_, norm) in enumerate(STEM, 1)),
    *((rf"^BlockGroup{i + 1}_", f"layer{i}_") for i in range(1, 5)),
    (r"^(layer\d)__block_(\d+)__projection_conv/", r"\1.\2.downsample.1."),
    (r"^(layer\d)__block_(\d+)__projection_batch_norm/", r"\1.\2.downsample.2."),
    (r"^(layer\d)__block_(\d+)__conv_(\d)/", r"\1.\2.conv\3."),
    (r"^(layer\d)__block_(\d+)__?batch_norm_(\d)/", r"\1.\2.bn\3."),
    (r"^(layer\d)__block_(\d+)__se_se_reduce/", r"\1.\2.se.fc1."),
    (r"^(layer\d)__block_(\d+)__se_se_expand/", r"\1.\2.se.fc2."),
    (rf"^predictions/|^{DENSE}", "fc."),
)


def to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert Keras's names and kernels; the counters of norms are zero."""
    dense = {name: weight(tensor) if name.endswith("/kernel") else tensor for name, tensor in state.items()}
    new = rename_keys(dense, RULES)
    norms = [name.removesuffix("running_mean") for name in new if name.endswith(".running_mean")]
    return new | {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms}


LAYOUTS = (
    Layout(
        "keras",
        "ResNet",
        has_keys(r"stem_\d+_stem_conv_1/kernel$", r"BlockGroup2__block_0__conv_1/kernel$"),
        to_native,
        ignores={r"(normalization|rescaling)(_\d+)?/": "preprocessing that is a part of Keras's model"},
        data=IMAGENET,
    ),
)
