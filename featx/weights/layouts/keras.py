"""Layouts of Keras's MobileNetV2, MobileNetV3, EfficientNet and EfficientNetV2 (keras.applications).

Kernels are (height, width, in, out), those of depthwise convolutions (height, width, channels, 1). Names are those of
the layers; Keras 2 has slashes and capitals in MobileNetV3's. Convolutions pad as TensorFlow does.
https://github.com/keras-team/keras/tree/master/keras/src/applications
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, names_in
from ...models.efficientnet import SILU
from ...models.layers.mobile import MobileStyle, as_tensorflow
from ...models.mobilenetv3 import HARD
from ...preprocessing import IMAGENET, INCEPTION
from ..layout import Layout, has_keys
from ..state_dict_keys import ModuleTable, State, StateDict

COUNTER = "num_batches_tracked"
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
FROM_NORM = {keras: native for native, keras in NORM.items()}
DEPTHWISE = "conv_dw"

Blocks = Mapping[tuple[int, int], frozenset[str]]  # modules of each native block, by stage and index


@dataclass(frozen=True, slots=True)
class Naming:
    """Keras's names by native names.

    outside: modules outside the blocks. parts: Keras's names of a block's modules by their native names, for each kind
    of block, which is known by its modules. prefix: of the names of a block, a template with its `stage`, the `letter`
    of its place in the stage, and its `number` in the network. first: the same of the first block.
    """

    outside: ModuleTable
    parts: tuple[ModuleTable, ...]
    prefix: str
    first: str


def gated(table: ModuleTable, reduce: str, expand: str) -> tuple[ModuleTable, ModuleTable]:
    """The table of a kind of block, without and with squeeze-and-excitation."""
    return table, {**table, "se.conv_reduce": reduce, "se.conv_expand": expand}


def inverted(depthwise: str, depthwise_norm: str, norm: str) -> ModuleTable:
    """The table of an inverted residual block. norm: the end of names of the other norms."""
    expansion = {"conv_pw": "expand", "bn1": f"expand{norm}"}
    return {**expansion, DEPTHWISE: depthwise, "bn2": depthwise_norm, "conv_pwl": "project", "bn3": f"project{norm}"}


def separable(depthwise: str, depthwise_norm: str, norm: str) -> ModuleTable:
    """The table of a depthwise separable block."""
    return {DEPTHWISE: depthwise, "bn1": depthwise_norm, "conv_pw": "project", "bn2": f"project{norm}"}


V2_NORMS, V3_NORMS = ("depthwise", "depthwise_BN", "_BN"), ("depthwise", "depthwise_bn", "_bn")
MOBILENETV2 = Naming(
    {"conv_stem": "Conv1", "bn1": "bn_Conv1", "conv_head": "Conv_1", "bn2": "Conv_1_bn", "classifier": "predictions"},
    (inverted(*V2_NORMS), separable(*V2_NORMS)),
    "block_{number}_",
    "expanded_conv_",
)
SE = ("squeeze_excite_conv", "squeeze_excite_conv_1")
MOBILENETV3 = Naming(
    {"conv_stem": "conv", "bn1": "conv_bn", "conv_head": "conv_2", "classifier": "logits"},
    (*gated(inverted(*V3_NORMS), *SE), *gated(separable(*V3_NORMS), *SE), {"conv": "conv_1", "bn1": "conv_1_bn"}),
    "expanded_conv_{number}_",
    "expanded_conv_",
)
FUSED = {"conv_exp": "expand_conv", "bn1": "expand_bn", "conv_pwl": "project_conv", "bn2": "project_bn"}


def efficientnet(depthwise: str) -> Naming:
    """The names of EfficientNet or EfficientNetV2. depthwise: the end of names of depthwise convolutions."""
    gate = ("se_reduce", "se_expand")
    mixed = {DEPTHWISE: depthwise, "bn2": "bn", "conv_pwl": "project_conv", "bn3": "project_bn"}
    single = {DEPTHWISE: depthwise, "bn1": "bn", "conv_pw": "project_conv", "bn2": "project_bn"}
    return Naming(
        {
            "conv_stem": "stem_conv",
            "bn1": "stem_bn",
            "conv_head": "top_conv",
            "bn2": "top_bn",
            "classifier": "predictions",
        },
        (
            *gated({"conv_pw": "expand_conv", "bn1": "expand_bn", **mixed}, *gate),
            *gated(single, *gate),
            *gated(FUSED, *gate),
            {"conv": "project_conv", "bn1": "project_bn"},
        ),
        *["block{stage}{letter}_"] * 2,
    )


def module_table(naming: Naming, names: Collection[str]) -> ModuleTable:
    """Keras's names of the modules of a model with these native names.

    Raises:
        CheckpointError: Keras has no block with such modules.
    """
    table = dict(naming.outside)
    for number, ((stage, index), modules) in enumerate(sorted(_blocks(names).items())):
        parts = next((parts for parts in naming.parts if parts.keys() == modules), None)
        if parts is None:
            raise CheckpointError(f"Keras has no block of the modules {sorted(modules)}, as blocks.{stage}.{index} is")
        template = naming.prefix if number else naming.first
        is_plain = "conv_1" in parts.values()  # MobileNetV3's last one, which is not a block in Keras
        letter = chr(ord("a") + index)
        prefix = "" if is_plain else template.format(stage=stage + 1, letter=letter, number=number)
        table |= {f"blocks.{stage}.{index}.{native}": f"{prefix}{keras}" for native, keras in parts.items()}
    return table


def _blocks(names: Collection[str]) -> Blocks:
    blocks: dict[tuple[int, int], set[str]] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.(.+)\.\w+$", name):
            blocks.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    return {place: frozenset(modules) for place, modules in blocks.items()}


def to_native(naming: Naming, state: State, names: Collection[str]) -> StateDict:
    """Convert Keras's names and kernels; the counters of norms are zero."""
    native = {keras: module for module, keras in module_table(naming, names).items()}
    native[_classifier(state, naming.outside["classifier"])] = "classifier"
    new: StateDict = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition("/")
        module = native.get(plain_name(layer) if naming is MOBILENETV3 else layer)
        if module is None:
            new[name] = tensor
        elif leaf.endswith("kernel"):
            new[f"{module}.weight"] = _kernel(module, tensor)
        else:
            new[f"{module}.{FROM_NORM.get(leaf, leaf)}"] = tensor
    norms = [name.removesuffix("running_mean") for name in new if name.endswith("running_mean")]
    return new | {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms}


DENSE = r"(?:.*/)?dense(?:_\d+)?/"  # the default name of a Dense layer, in any group


def _classifier(state: State, published: str) -> str:
    """The layer that is the classifier: the only Dense layer with the default name, as in fine-tuned models."""
    layers = {name.rpartition("/")[0] for name in state if re.match(DENSE, name)}
    return layers.pop() if len(layers) == 1 and f"{published}/kernel" not in state else published


def plain_name(layer: str) -> str:
    """A layer's name in Keras 3, where Keras 2 calls it "expanded_conv/depthwise/BatchNorm"."""
    return layer.replace("/BatchNorm", "_bn").replace("/", "_").lower()


def _kernel(module: str, kernel: Tensor) -> Tensor:
    """A kernel with the output axis first; MobileNetV3's classifier, a 1x1 convolution in Keras, is linear here."""
    if kernel.ndim == 2:
        return kernel.T.contiguous()
    if kernel.ndim != 4:
        return kernel
    order = (2, 3, 0, 1) if module.endswith(DEPTHWISE) else (3, 2, 0, 1)
    weight = kernel.permute(order).contiguous()
    return weight.flatten(1) if module == "classifier" else weight


def weight(kernel: Tensor) -> Tensor:
    """A kernel with the output axis first; loading then reports one with another number of axes."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(kernel.ndim)
    return kernel.permute(order).contiguous() if order else kernel


def from_native(naming: Naming, state: State) -> StateDict:
    """Convert to Keras's names and kernels; CheckpointError lists tensors that Keras does not have."""
    table, new, unknown = module_table(naming, state), {}, []
    norms = {name.rpartition(".")[0] for name in state if name.endswith(".running_mean")}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if module not in table:
            unknown.append(name)
        elif module in norms and leaf in NORM:
            new[f"{table[module]}/{NORM[leaf]}"] = tensor
        elif leaf == "weight":
            new[f"{table[module]}/kernel"] = _keras_kernel(module, tensor, naming is MOBILENETV3)
        elif leaf != COUNTER:
            new[f"{table[module]}/{leaf}"] = tensor
    if unknown:
        raise CheckpointError(f"Keras has no place for {len(unknown)} of these tensors: {names_in(unknown)}")
    return new


def _keras_kernel(module: str, weight: Tensor, is_convolution: bool) -> Tensor:
    """The inverse of `_kernel`. is_convolution: whether Keras's classifier is a convolution."""
    if weight.ndim == 2:
        kernel = weight.T.contiguous()
        return kernel[None, None] if is_convolution else kernel
    return weight.permute((2, 3, 0, 1) if module.endswith(DEPTHWISE) else (2, 3, 1, 0)).contiguous()


def is_large(state: State) -> bool:
    """Whether an EfficientNetV2 is S, M or L, which expect other images than B0 to B3; their first stage is wider."""
    kernel = state.get("block1a_project_conv/kernel")
    return is_v2(state) and kernel is not None and kernel.ndim == 4 and kernel.shape[3] >= 24


def is_small(state: State) -> bool:
    return is_v2(state) and not is_large(state)


def layout(
    system: str,
    family: str,
    naming: Naming,
    style: MobileStyle,
    data: Mapping[str, object],
    recognizes: Callable[[State], bool],
) -> Layout:
    return Layout(
        system,
        family,
        recognizes,
        partial(to_native, naming),
        partial(from_native, naming),
        ignores={r"(normalization|rescaling)(_\d+)?/": "preprocessing that is a part of Keras's model"},
        settings={"style": as_tensorflow(style)},
        data=data,
        notes=("convolutions pad as TensorFlow does, and batch norms add 1e-3 to the variance",),
    )


STEM = r"stem_bn/gamma$"
is_v2 = has_keys(STEM, r"block\d[a-z]_dwconv2/\w*kernel$")
is_mobilenetv2 = has_keys(r"bn_Conv1/gamma$", r"expanded_conv_depthwise/\w*kernel$")
is_mobilenetv3 = has_keys(r"(conv_bn|Conv/BatchNorm)/gamma$", r"expanded_conv[_/]depthwise/\w*kernel$")
V1, V2 = efficientnet("dwconv"), efficientnet("dwconv2")
LAYOUTS = (
    layout("keras-mobilenetv2", "EfficientNet", MOBILENETV2, MobileStyle(nn.ReLU6), INCEPTION, is_mobilenetv2),
    layout("keras", "EfficientNet", V1, SILU, IMAGENET, has_keys(STEM, r"block1a_dwconv/\w*kernel$")),
    layout("keras-efficientnetv2", "EfficientNet", V2, SILU, IMAGENET, is_small),
    layout("keras-efficientnetv2-large", "EfficientNet", V2, SILU, INCEPTION, is_large),
    layout("keras", "MobileNetV3", MOBILENETV3, HARD, INCEPTION, is_mobilenetv3),
)
