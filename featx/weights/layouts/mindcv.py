"""Layouts of MindCV's ResNet, ResNeSt, RepVGG, ReXNet, HRNet and ConvNeXt, as MindSpore saves them.

https://github.com/mindspore-lab/mindcv/tree/main/mindcv/models
MindSpore names the weight and bias of a norm gamma and beta, and its statistics moving_*; it does not count batches.
"""

import re
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...models.convnext import ChannelLinear
from ...models.hrnet import resized
from ...models.layers.padding import SameConv2d, SameMaxPool2d
from ...models.resnest import SamePoolSplitBottleneck
from ...preprocessing import IMAGENET
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys

# Tensors of the training state.
IGNORES = {
    r"ema\.": "moving averages of the weights",
    r"(moments?[123]?|adam_[mv]|nadam_[mv]|lion_m|prev_gradient|accum|stat|swap)\.": "state of the optimizer",
    r"(learning_rate|global_step|momentum|beta[12]_power|mu_schedule|updates|scale_sense)$": "state of the optimizer",
    r"(current_iterator_step|last_overflow_iterator_step|epoch_num|step_num|loss_scale)$": "progress of the training",
}

# MindCV's feature extraction flattens sequences, and their names get an underscore.
FLATTENED: Rule = (r"^(features?)_(\d+)\.", r"\1.\2.")
LEAVES: tuple[Rule, ...] = (
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"\.moving_mean$", ".running_mean"),
    (r"\.moving_variance$", ".running_var"),
    (r"\.gamma_$", ".gamma"),
)
TO_STATISTICS: tuple[Rule, ...] = (
    (r"\.gamma$", ".gamma_"),
    (r"\.running_mean$", ".moving_mean"),
    (r"\.running_var$", ".moving_variance"),
)
COUNTER = ".num_batches_tracked"


def to_pytorch(state: State, rules: Iterable[Rule] = ()) -> StateDict:
    """Apply the rules and PyTorch's names for norms, and set `num_batches_tracked` to zero."""
    new = rename_keys(state, (FLATTENED, *rules, *LEAVES))
    norms = [name.removesuffix(".running_mean") for name in new if name.endswith(".running_mean")]
    return new | {norm + COUNTER: torch.tensor(0) for norm in norms}


def to_mindspore(state: State, rules: Iterable[Rule] = ()) -> StateDict:
    """Apply MindSpore's names for norms (modules with a vector as weight) and the rules: inverse of `to_pytorch`."""
    norms = {name.removesuffix(".weight") for name, t in state.items() if name.endswith(".weight") and t.ndim == 1}
    leaves = {"weight": "gamma", "bias": "beta"}

    def leaf(name: str) -> str:
        module, _, last = name.rpartition(".")
        return f"{module}.{leaves.get(last, last)}" if module in norms else name

    kept = {name: tensor for name, tensor in rename_keys(state, TO_STATISTICS).items() if not name.endswith(COUNTER)}
    return rename_keys({leaf(name): tensor for name, tensor in kept.items()}, rules)


SYSTEM = "mindcv"

RESNET: tuple[Rule, ...] = ((r"\.down_sample\.", ".downsample."), (r"^classifier\.", "fc."))
TO_RESNET: tuple[Rule, ...] = ((r"\.downsample\.", ".down_sample."), (r"^fc\.", "classifier."))


def resnet_to_native(state: State, _names: Collection[str]) -> StateDict:
    """Convert ResNet or ResNeSt, whose modules have native names."""
    return to_pytorch(state, () if is_resnest(state) else RESNET)


def resnet_from_native(state: State) -> StateDict:
    resnest = any(name.startswith("layer1.0.conv2.conv.") for name in state)
    return to_mindspore(state, () if resnest else TO_RESNET)


is_resnest = has_keys(r"bn1\.gamma$", r"conv1\.0\.weight$")
is_resnet = has_keys(r"bn1\.gamma$", r"conv1\.weight$")

REPVGG: tuple[Rule, ...] = (
    (r"^stage0\.", "stem."),
    (r"^stage(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.rbr_dense\.0\.", ".conv_kxk.conv."),
    (r"\.rbr_dense\.1\.", ".conv_kxk.bn."),
    (r"\.rbr_1x1\.0\.", ".conv_1x1.conv."),
    (r"\.rbr_1x1\.1\.", ".conv_1x1.bn."),
    (r"\.rbr_identity\.", ".identity."),
    (r"\.rbr_reparam\.", ".reparam_conv."),
    (r"\.se\.conv_reduce\.", ".attn.fc1."),
    (r"\.se\.conv_expand\.", ".attn.fc2."),
    (r"^linear\.", "head.fc."),
)
TO_REPVGG: tuple[Rule, ...] = (
    (r"^stem\.", "stage0."),
    (r"^stages\.(\d+)\.", lambda match: f"stage{int(match[1]) + 1}."),
    (r"\.conv_kxk\.conv\.", ".rbr_dense.0."),
    (r"\.conv_kxk\.bn\.", ".rbr_dense.1."),
    (r"\.conv_1x1\.conv\.", ".rbr_1x1.0."),
    (r"\.conv_1x1\.bn\.", ".rbr_1x1.1."),
    (r"\.identity\.", ".rbr_identity."),
    (r"\.reparam_conv\.", ".rbr_reparam."),
    (r"\.attn\.fc1\.", ".se.conv_reduce."),
    (r"\.attn\.fc2\.", ".se.conv_expand."),
    (r"^head\.fc\.", "linear."),
)

HRNET: tuple[Rule, ...] = ((r"\.down_sample\.", ".downsample."), (r"^downsample_modules\.", "downsamp_modules."))
TO_HRNET: tuple[Rule, ...] = ((r"^downsamp_modules\.", "downsample_modules."), (r"\.downsample\.", ".down_sample."))
# biases of the classifier's convolutions, which MindCV lacks
BIAS = r"(downsamp_modules\.\d+|final_layer)\.0\.bias$"


def hrnet_to_native(state: State, names: Collection[str]) -> StateDict:
    """Convert to native names; biases that MindCV lacks are zero."""
    new = to_pytorch(state, HRNET)
    biases = [name for name in names if re.match(BIAS, name)]
    weights = {name: new.get(name.removesuffix("bias") + "weight") for name in biases}
    return new | {name: w.new_zeros(w.shape[0]) for name, w in weights.items() if w is not None and w.ndim == 4}


def hrnet_from_native(state: State) -> StateDict:
    """Convert to MindCV's names; biases that MindCV lacks are subtracted from the running means of the next norms."""
    new = dict(state)
    for name in filter(re.compile(BIAS).match, state):
        mean = name.replace(".0.bias", ".1.running_mean")
        new[mean] = new[mean] - new.pop(name)
    return to_mindspore(new, TO_HRNET)


REXNET: tuple[Rule, ...] = (
    (r"\.features\.0\.", ".conv."),
    (r"\.features\.1\.", ".bn."),
    (r"\.se\.conv_reduce\.", ".se.fc1."),
    (r"\.se\.conv_expand\.", ".se.fc2."),
    (r"^cls\.1\.", "head.fc."),
)
TO_REXNET: tuple[Rule, ...] = (
    (r"\.conv\.", ".features.0."),
    (r"(?<!\.se)\.bn\.", ".features.1."),
    (r"\.se\.fc1\.", ".se.conv_reduce."),
    (r"\.se\.fc2\.", ".se.conv_expand."),
    (r"^head\.fc\.", "cls.1."),
)


def by_rules(state: State, _names: Collection[str], rules: tuple[Rule, ...]) -> StateDict:
    return to_pytorch(state, rules)


def recipe(interpolation: str, **others: float) -> dict[str, Any]:
    """The preprocessing of MindCV's training recipes."""
    return {**IMAGENET, "interpolation": interpolation, "crop_mode": "center", **others}


MAX_POOL = {"max_pool": partial(SameMaxPool2d, kernel=3, stride=2)}
PADDED = "padded as TensorFlow does"


# Even indices of the sequence are the stem and the downsampling layers, odd ones the stages.
CONVNEXT: tuple[Rule, ...] = (
    (r"^feature\.0\.", "stem."),
    (r"^feature\.([246])\.", lambda match: f"stages.{int(match[1]) // 2}.downsample."),
    (r"^feature\.([1357])\.", lambda match: f"stages.{int(match[1]) // 2}.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"^norm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.", "feature.0."),
    (r"^stages\.(\d)\.downsample\.", lambda match: f"feature.{2 * int(match[1])}."),
    (r"^stages\.(\d)\.blocks\.", lambda match: f"feature.{2 * int(match[1]) + 1}."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.", ".grn."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "classifier."),
)


def convnext_to_native(state: State, _names: Collection[str]) -> StateDict:
    return {name: t.flatten() if ".grn." in name else t for name, t in to_pytorch(state, CONVNEXT).items()}


def convnext_from_native(state: State) -> StateDict:
    """Convert to MindCV's names; 1x1 convolutions of small variants become linear layers, response norms get 4 axes."""
    new: StateDict = {}
    for name, tensor in to_mindspore(state, TO_CONVNEXT).items():
        if ".grn." in name:
            tensor = tensor.view(1, 1, 1, -1)
        elif ".pwconv" in name and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        new[name] = tensor
    return new


LAYOUTS = (
    Layout(
        SYSTEM,
        "ResNet",
        is_resnet,
        resnet_to_native,
        resnet_from_native,
        ignores=IGNORES,
        settings=MAX_POOL,
        data=recipe("bilinear", crop=0.875),
        notes=(f"the stem's pool is {PADDED}",),
    ),
    Layout(
        SYSTEM,
        "ResNet",
        is_resnest,
        resnet_to_native,
        resnet_from_native,
        ignores=IGNORES,
        settings={**MAX_POOL, "block": SamePoolSplitBottleneck},
        data=recipe("bicubic"),
        notes=(f"pools are {PADDED}",),
    ),
    Layout(
        SYSTEM,
        "RepVGG",
        has_keys(r"stage0\.rbr_dense\.0\.weight$"),
        partial(by_rules, rules=REPVGG),
        partial(to_mindspore, rules=TO_REPVGG),
        ignores=IGNORES,
        data=recipe("bilinear", crop=0.875),
    ),
    Layout(
        SYSTEM,
        "ReXNet",
        has_keys(r"stem\.features\.0\.weight$"),
        partial(by_rules, rules=REXNET),
        partial(to_mindspore, rules=TO_REXNET),
        ignores=IGNORES,
        data=recipe("bicubic", crop=0.875),
    ),
    Layout(
        SYSTEM,
        "HRNet",
        has_keys(r"conv1\.weight$", r"bn1\.gamma$", r"conv2\.weight$", r"bn2\.gamma$"),
        hrnet_to_native,
        hrnet_from_native,
        ignores=IGNORES,
        settings={"fit": resized},
        data=recipe("bilinear", crop=0.875),
        notes=(
            "coarse branches are resized to the branch they are added to",
            "MindCV rounds them to half precision, so that its maps differ from ours by 5e-4 of the largest value",
        ),
    ),
    Layout(
        SYSTEM,
        "ConvNeXt",
        has_keys(r"feature[._]0\.0\.weight$", r"feature[._]0\.1\.gamma$"),
        convnext_to_native,
        convnext_from_native,
        ignores=IGNORES,
        settings={
            "act": partial(nn.GELU, approximate="tanh"),
            "mix": ChannelLinear,
            "norm_eps": 1e-6,
            "patch": SameConv2d,
        },
        data=recipe("bicubic", crop=0.95),
        notes=(
            "GELU is approximated by tanh",
            "channels are mixed by linear layers in all sizes",
            "incomplete patches at the border are padded with zeros",
        ),
    ),
)
