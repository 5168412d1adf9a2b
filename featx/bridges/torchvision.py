"""torchvision's classification models.

Their levels are found from what their modules return: one per reduction, the stem included, and one per block of a ViT.
Swin's maps are turned to (N, C, H, W), a ViT's tokens become grids without the class token. AlexNet, GoogLeNet,
Inception and SqueezeNet convolve without padding, so that maps are a few cells smaller than H / reduction.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..backbone import Pyramid
from ..errors import ArgumentError, CheckpointError, ContractError, UnknownModelError, WeightsNotFoundError
from ..features import FeatureInfo, Levels
from ..level_discovery import Candidate, propose
from ..preprocessing import DataConfig, share
from ..spelling import closest
from ..tracing.copies import structural_copy, without_values
from ..tracing.map_layout import Size
from ..tracing.size_rules import SizeRule
from ..tracing.survey import survey_model
from ..tracing.third_party_errors import ThirdPartyError, passed_on, third_party
from ..weights.adapt import TargetTensor, input_channels
from ..wrappers.chain import Chain
from ..wrappers.hooked import HookedPyramid, measured_roundings

# Arguments of the builders that published weights need, by the start of a model's name, from the weights' facts.
OF_WEIGHTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "vit_": lambda meta: {"image_size": meta["min_size"][0]},
    "maxvit_": lambda meta: {"input_size": meta["min_size"]},
    "googlenet": lambda _: {"transform_input": True},
    "inception_": lambda _: {"transform_input": True},
}

# What their constructors would warn of if it were left out.
DEFAULTS = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}

# Preprocessing of models without published weights.
UNTRAINED = DataConfig(interpolation="bilinear")

# Which strides of a ResNet's last three stages become dilations.
DILATED = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}

# Layers that DenseNet's published weights name in the old way.
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")


def names() -> list[str]:
    """All classification models of the package."""
    from torchvision import models

    return models.list_models(module=models)


def build(
    name: str,
    *,
    pretrained: bool = False,
    in_chans: int | None = None,
    num_classes: int | None = None,
    output_stride: int | None = None,
    cache_dir: str | Path | None = None,
    **arch: Any,
) -> nn.Module:
    """The package's own model. `name` may end with one of its weights, as in "resnet50.IMAGENET1K_V2".

    in_chans: replaces the first convolution; published weights are summed or repeated for it.
    num_classes: 0 leaves the pooled features.
    output_stride: 8, 16 or 32 for the ResNets with bottlenecks, 16 or 32 for MobileNetV3.
    arch: arguments of the package's builder, such as `image_size` of a ViT and `input_size` of MaxViT.

    Raises UnknownModelError, ArgumentError, WeightsNotFoundError if the weights cannot be downloaded.
    """
    name, _, tag = name.partition(".")
    published = _published(name, tag)
    arguments = {**DEFAULTS.get(name, {}), **_dilation(name, output_stride)}
    if pretrained:
        settings = (of(published.meta) for start, of in OF_WEIGHTS.items() if name.startswith(start))
        arguments.update({key: value for setting in settings for key, value in setting.items()})
    if num_classes is not None and num_classes < 0:
        raise ArgumentError(f"num_classes={num_classes}: expected 0 (pooled features) or more")
    if num_classes:
        arguments["num_classes"] = num_classes
    model: Any = _built(name, {**arguments, **arch})
    if pretrained:
        _fill(model, published, cache_dir)
    model.in_chans = 3 if in_chans is None else in_chans
    if model.in_chans != 3:
        _replace_first(model, model.in_chans, name)
    if num_classes == 0:
        last = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        model.set_submodule(last, nn.Identity())
    model.data_config = _at_size(data_config(published) if published else UNTRAINED, model)
    return model


def pyramid(model: nn.Module) -> Pyramid:
    """The model as a source of maps; ContractError for one of the package's models that is no classifier.

    A model whose modules are proven to run one after another is a Chain; hooks collect the maps of the others.
    """
    config = getattr(model, "data_config", None) or _at_size(UNTRAINED, model)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ContractError(f"{type(model).__name__} has no convolution that takes images: use featx.tap")
    size = _size(model)
    images = torch.empty(2, first.in_channels, *(size or config.size), dtype=first.weight.dtype, device="meta")
    seen = survey_model(model, images)
    found = propose(seen, model, "features" if "features" in model._modules else "")
    if not found:
        raise ContractError(f"{type(model).__name__} has no levels that can be found: use featx.tap")
    pyramid = _in_order(model, found, images)
    if pyramid is None:
        tapped = HookedPyramid(model, [one.tap for one in found], seen, size)
        tapped.data_config = config
        return tapped
    pyramid.data_config, pyramid.in_chans, pyramid.fixed_size = config, first.in_channels, size
    twin = structural_copy(pyramid, without_values)  # which keeps no weights alive that a cut pyramid does without
    pyramid.size_rule = SizeRule(partial(measured_roundings, twin, range(len(found)), size or config.size))
    return pyramid


def _in_order(model: nn.Module, found: Sequence[Candidate], images: Tensor) -> Chain | None:
    """The levels of a model whose modules run one after another; None if that cannot be proven."""
    if any(one.tap.key is not None for one in found):
        return None
    levels = Levels(FeatureInfo(one.layout.chs, one.layout.reduction, one.tap.name) for one in found)
    try:
        return Chain(model, levels, [one.layout for one in found], images)
    except ContractError:
        return None


def data_config(weights: Any) -> DataConfig:
    """The preprocessing that published weights state."""
    stated = weights.transforms()
    (side,), (resized,) = stated.crop_size, stated.resize_size
    interpolation, crop = stated.interpolation.value, share(side, resized)
    return DataConfig((side, side), tuple(stated.mean), tuple(stated.std), interpolation, crop)


def _published(name: str, tag: str) -> Any:
    """The weights of that tag, or the default ones, None if the model has none."""
    from torchvision import models

    if name not in names():
        close = closest(name, names())
        hint = f"the closest are {close}" if close else "see featx.list_models('torchvision/*')"
        raise UnknownModelError(f"torchvision has no classification model {name!r}; {hint}")
    tags = models.get_model_weights(name)
    if not tag:
        return next((weights for weights in tags if weights == tags["DEFAULT"]), None)
    if tag not in tags.__members__:
        raise UnknownModelError(f"torchvision/{name} has no weights {tag!r}; it has {list(tags.__members__)}")
    return tags[tag]


def _dilation(name: str, output_stride: int | None) -> dict[str, Any]:
    if output_stride is None:
        return {}
    if name.startswith("mobilenet_v3"):
        arguments = {16: {"dilated": True}, 32: {}}  # its last stage alone
    elif "resne" in name:
        arguments = {stride: {"replace_stride_with_dilation": which} for stride, which in DILATED.items()}
    else:
        raise ArgumentError(f"torchvision/{name} cannot trade strides for dilation: leave output_stride out")
    if output_stride not in arguments:
        raise ArgumentError(f"output_stride={output_stride}: choose one of {list(arguments)}")
    return arguments[output_stride]


def _built(name: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models

    device = torch.get_default_device()
    try:
        if device.type != "meta":
            return third_party(models.get_model, name, **arguments)
        with torch.device("cpu"), _EmptyOn(device):
            return third_party(models.get_model, name, **arguments).to(device)
    except ThirdPartyError as error:
        raise ArgumentError(f"torchvision/{name} cannot be built with {arguments}: {error}") from error


class _EmptyOn(TorchFunctionMode):
    """Memory of parameters on a device, while the numbers that builders compute with stay on the CPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = self.device
        return passed_on(func, *args, **given)


def _fill(model: nn.Module, published: Any, cache_dir: str | Path | None) -> None:
    """Load published weights in place; a classifier of other classes stays as it is."""
    try:
        state = published.get_state_dict(model_dir=cache_dir, progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise WeightsNotFoundError(f"{published.url} cannot be downloaded: {error}; pass checkpoint_path=") from error
    own, classes = model.state_dict(), len(published.meta["categories"])
    state = {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
    resized = {name for name in own if own[name].shape != state[name].shape and len(state[name]) == classes}
    missing = model.load_state_dict({name: state[name] for name in own if name not in resized}, strict=False)
    if set(missing.missing_keys) != resized:
        raise CheckpointError(f"{published.url} does not fit the model: it lacks {missing.missing_keys}")


def _replace_first(model: nn.Module, in_chans: int, name: str) -> None:
    """Let the first convolution take other channels, in place."""
    path, old = next((path, part) for path, part in model.named_modules() if isinstance(part, nn.Conv2d))
    if getattr(model, "transform_input", False):
        raise ArgumentError(f"torchvision/{name} normalises three channels itself: leave in_chans={in_chans} out")
    weight = old.weight.detach()
    place = TargetTensor(path, (len(weight), in_chans, *weight.shape[2:]), model)
    changed = input_channels(weight, place) if in_chans > 0 else None
    if changed is None:
        raise ArgumentError(f"in_chans={in_chans}: expected 1 or more")
    old.in_channels, old.weight = in_chans, nn.Parameter(changed[0])


def _at_size(config: DataConfig, model: nn.Module) -> DataConfig:
    """The preprocessing for the size of images that the model takes; as it is if it takes any."""
    size = _size(model)
    return config if size in (None, config.size) else replace(config, size=size)


def _size(model: Any) -> Size | None:
    """The only size of images that the model takes, None if there are more."""
    from torchvision.models import MaxVit, VisionTransformer

    if isinstance(model, VisionTransformer):
        return model.image_size, model.image_size
    if isinstance(model, MaxVit):
        first: Any = model.blocks[0]
        height, width = first.grid_size
        return 4 * height, 4 * width
    return None
