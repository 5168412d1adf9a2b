"""Layouts of transformers' ResNet, ConvNeXt and ConvNeXt V2 (models/resnet, models/convnext and models/convnextv2).

In a model with a head, the backbone has the architecture's name as prefix; a backbone alone has no prefix.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor

from ...errors import CheckpointError, names_in
from ..layout import Layout, has_keys
from ..state_dict_keys import Rule, State, StateDict, rename_keys


def offset_number(template: str, by: int) -> Callable[[re.Match[str]], str]:
    """A replacement function that fills `{}` with the number in the pattern's first group plus `by`."""
    return lambda match: template.format(int(match[1]) + by)


def to_transformers(state: Mapping[str, Tensor], rules: Iterable[Rule], known: str, prefix: str) -> StateDict:
    """Apply the rules; if there is a `classifier` or `segmentation_head`, add `prefix` to the other names.

    Args:
        state: a native state dict.
        rules: rename rules.
        known: pattern of the names that transformers' model has besides the head.
        prefix: name of the architecture.

    Raises:
        CheckpointError: transformers' model lacks some of the tensors; the message lists them.
    """
    new = rename_keys(state, rules)
    head = r"classifier\.|segmentation_head\."
    unsupported = [name for name in new if not re.match(rf"({known}|{head})", name)]
    if unsupported:
        raise CheckpointError(
            f"transformers' {prefix} has no place for {len(unsupported)} of {len(new)} tensors, so that it cannot hold "
            f"this model: {names_in(unsupported)}"
        )
    if not any(re.match(head, name) for name in new):
        return new
    return {name if re.match(head, name) else f"{prefix}.{name}": tensor for name, tensor in new.items()}


RESNET: tuple[Rule, ...] = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", offset_number("layer{}.", 1)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", offset_number(".conv{}.", 1)),
    (r"\.layer\.(\d+)\.normalization\.", offset_number(".bn{}.", 1)),
    (r"^classifier\.1\.", "fc."),
)
TO_RESNET: tuple[Rule, ...] = (
    (r"^conv1\.(?=weight)", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    (r"^layer(\d+)\.", offset_number("encoder.stages.{}.layers.", -1)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"\.conv(\d+)\.", offset_number(".layer.{}.convolution.", -1)),
    (r"\.bn(\d+)\.", offset_number(".layer.{}.normalization.", -1)),
    (r"^fc\.", "classifier.1."),
)
RESNET_NAMES = (
    r"embedder\.embedder\.|encoder\.stages\.\d\.layers\.\d+\.(shortcut|layer\.\d)\.(convolution|normalization)\."
)


def resnet_to_native(state: State, _names: Collection[str]) -> StateDict:
    return rename_keys(state, RESNET)


def resnet_from_native(state: State) -> StateDict:
    """Convert to transformers' names.

    Raises:
        CheckpointError: the model has group norms, grouped convolutions or bottlenecks of another width, whose tensors
            would have the same names.
    """
    if "bn1.running_mean" not in state:
        raise CheckpointError("transformers' resnet has batch norms, unlike this model")
    for name, tensor in state.items():
        grouped = name.endswith(".conv2.weight") and tensor.shape[0] != tensor.shape[1]
        wide = name.endswith(".conv3.weight") and tensor.shape[0] != 4 * tensor.shape[1]
        if grouped or wide:
            raise CheckpointError(
                f"transformers' resnet has no groups, and bottlenecks of a quarter of the channels; {name} is "
                f"{tuple(tensor.shape)}"
            )
    return to_transformers(state, TO_RESNET, RESNET_NAMES, "resnet")


CONVNEXT: tuple[Rule, ...] = (
    (r"^convnext(v2)?\.", ""),
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"^layernorm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)
TO_CONVNEXT: tuple[Rule, ...] = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^stages\.(\d+)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d+)\.blocks\.", r"encoder.stages.\1.layers."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"(\.\d+)\.norm\.", r"\1.layernorm."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"\.mlp\.grn\.", ".grn."),
    (r"\.gamma$", ".layer_scale_parameter"),
    (r"^head\.norm\.", "layernorm."),
    (r"^head\.fc\.", "classifier."),
)
CONVNEXT_NAMES = r"embeddings\.|encoder\.stages\.\d\.(downsampling_layer|layers)\.|layernorm\."
# Variants narrower than LINEAR_FROM (atto to nano), and the one with NORM_FIRST, have 1x1 convolutions in the MLP.
LINEAR_FROM, NORM_FIRST = 96, "norm_pre.weight"


def convnext_to_native(state: State, names: Collection[str]) -> StateDict:
    new = rename_keys(state, CONVNEXT)
    pointwise = NORM_FIRST in names or new["stem.0.weight"].shape[:1] < (LINEAR_FROM,)
    for name, tensor in new.items():
        if re.search(r"\.mlp\.grn\.", name):
            new[name] = tensor.flatten()
        elif pointwise and re.search(r"\.mlp\.fc\d\.weight$", name):
            new[name] = tensor[..., None, None]
    return new


def convnext_from_native(state: State) -> StateDict:
    is_v2 = any(".grn." in name for name in state)
    new = {}
    for name, tensor in state.items():
        if ".grn." in name:
            tensor = tensor.reshape(1, 1, 1, -1)
        elif re.search(r"\.mlp\.fc\d\.weight$", name):
            tensor = tensor.flatten(1)
        new[name] = tensor
    return to_transformers(new, TO_CONVNEXT, CONVNEXT_NAMES, "convnextv2" if is_v2 else "convnext")


LAYOUTS = (
    Layout(
        "transformers",
        "ResNet",
        has_keys(
            r"(resnet\.)?embedder\.embedder\.convolution\.", r"(resnet\.)?encoder\.stages\.\d+\.layers\.0\.layer\.0\."
        ),
        resnet_to_native,
        resnet_from_native,
        notes=(
            "the stride of a stage is in the 3x3 convolution of its first block (v1.5); weights of a model that was "
            "configured with downsample_in_bottleneck=True (v1) have the same names, and give other maps",
        ),
    ),
    Layout(
        "transformers",
        "ConvNeXt",
        has_keys(
            r"(convnext(v2)?\.)?embeddings\.patch_embeddings\.weight",
            r"(convnext(v2)?\.)?encoder\.stages\.\d+\.layers\.0\.dwconv\.",
        ),
        convnext_to_native,
        convnext_from_native,
        ignores={r"hidden_states_norms\.": "norms of the maps that transformers' backbone class returns"},
        settings={"head_norm_eps": 1e-12},
        notes=("the last norm adds 1e-12 to the variance",),
    ),
)
