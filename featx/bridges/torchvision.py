"""Bridge to torchvision's classification models.

Levels are found from the outputs of modules: one per reduction, including the stem, and one per block of a ViT. Maps of
Swin are permuted to (N, C, H, W), and tokens of ViTs become grids without the class token. AlexNet, GoogLeNet,
Inception and SqueezeNet have convolutions without padding: their maps are a few cells smaller than H / reduction.
"""

import re
from collections.abc import Callable, Mapping, Sequence
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
from ..weights.hub_config import plain_arguments, require_limits
from ..weights.hub_format import (
    CREATED,
    Created,
    architecture_in,
    labels_in,
    lacking,
    preprocessing_in,
    preprocessing_of,
    require_plain,
)
from ..wrappers.chain import Chain
from ..wrappers.hooked import HookedPyramid, measured_roundings
from .plain_checkpoint import load as load

# Arguments of builders that published weights need, by the prefix of the model's name, from the weights' metadata.
OF_WEIGHTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "vit_": lambda meta: {"image_size": meta["min_size"][0]},
    "maxvit_": lambda meta: {"input_size": meta["min_size"]},
    "googlenet": lambda _: {"transform_input": True},
    "inception_": lambda _: {"transform_input": True},
}

# Arguments without which constructors warn.
DEFAULTS = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}

# Preprocessing of models without published weights.
UNTRAINED = DataConfig(interpolation="bilinear")

# Whether the stride of each of a ResNet's last three stages becomes dilation, by output stride.
DILATED = {8: [False, True, True], 16: [False, False, True], 32: [False, False, False]}

# Outdated keys of DenseNet's published weights.
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
    """The package's own model.

    Args:
        name: "model" or "model.weights", as in "resnet50.IMAGENET1K_V2".
        pretrained: load these weights, or the default ones.
        in_chans: channels of the images, for which the first convolution is replaced. Published weights are summed or
            repeated.
        num_classes: number of classes; 0 for a model that returns pooled features.
        output_stride: 8, 16 or 32 for ResNets with bottlenecks, 16 or 32 for MobileNetV3.
        cache_dir: folder for downloads.
        arch: arguments of the package's builder, such as `image_size` of a ViT or `input_size` of MaxViT.

    Raises:
        UnknownModelError: the package has no such model or weights.
        ArgumentError: an argument is invalid for the model.
        WeightsNotFoundError: the weights cannot be downloaded.
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
    model: Any = _build(name, {**arguments, **arch})
    chosen = {"in_chans": in_chans, "num_classes": num_classes, "output_stride": output_stride, **arch}
    own = {key: value for key, value in arguments.items() if key in ("image_size", "input_size", "transform_input")}
    setattr(model, CREATED, Created(name, {**own, **{k: v for k, v in chosen.items() if v is not None}}))
    if pretrained:
        _load(model, published, cache_dir)
    model.in_chans = 3 if in_chans is None else in_chans
    if model.in_chans != 3:
        _adapt_first_conv(model, model.in_chans, name)
    if num_classes == 0:
        last = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        model.set_submodule(last, nn.Identity())
    model.data_config = _at_size(data_config(published) if published else UNTRAINED, model)
    return model


def restore(config: Mapping[str, Any], where: str, **given: Any) -> nn.Module:
    """The package's model that a `config.json` of `featx.save` describes, with random weights.

    Args:
        config: the parsed file.
        where: the folder or repository of the file, for messages.
        given: arguments of `build`, instead of those that the file states.

    Raises:
        UnknownModelError: the package has no such model.
        CheckpointError: the file describes no model that can be built, or one far larger than the published one.
    """
    name = architecture_in(config, where)
    if config.get("featx", {}).get("package") != "torchvision":
        raise UnknownModelError(f"{where!r} does not describe a model of torchvision: ask for it alone")
    stated = plain_arguments(config["featx"].get("arguments", {}), where)
    if unknown := sorted({"pretrained", "cache_dir", "weights", "progress"} & stated.keys()):
        raise CheckpointError(f"config.json of {where} has {lacking(unknown)}")
    require_limits(partial(build, name, **stated), partial(build, name), where)
    model: Any = build(name, **{**stated, **{key: value for key, value in given.items() if value is not None}})
    model.data_config = preprocessing_in(config, model.data_config, where)
    model.label_names = labels_in(config)
    return model


def describe(model: nn.Module) -> dict[str, Any]:
    """The `config.json` from which `restore` builds the model; ArgumentError if `build` did not build it."""
    created: Created | None = vars(model).get(CREATED)
    if created is None:
        raise ArgumentError(f"{type(model).__name__} was not built by create_model: save its state_dict() instead")
    require_plain(created.arguments, f"torchvision/{created.name}")
    package = {"package": "torchvision", "arguments": created.arguments}
    return {"architecture": created.name, "featx": package, **preprocessing_of(model)}


def pyramid(model: nn.Module) -> Pyramid:
    """A Pyramid of the model: a Chain if its modules provably run one after another, or else a HookedPyramid.

    Raises:
        ContractError: no levels are found.
    """
    config = getattr(model, "data_config", None) or _at_size(UNTRAINED, model)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        raise ContractError(f"{type(model).__name__} has no convolution that takes images: use featx.tap")
    size = _fixed_size(model)
    images = torch.empty(2, first.in_channels, *(size or config.size), dtype=first.weight.dtype, device="meta")
    survey = survey_model(model, images)
    candidates = propose(survey, model, "features" if "features" in model._modules else "")
    if not candidates:
        raise ContractError(f"{type(model).__name__} has no levels that can be found: use featx.tap")
    chain = _as_chain(model, candidates, images)
    if chain is None:
        hooked = HookedPyramid(model, [candidate.tap for candidate in candidates], survey, size)
        hooked.data_config = config
        return hooked
    chain.data_config, chain.in_chans, chain.fixed_size = config, first.in_channels, size
    twin = structural_copy(chain, without_values)  # so that the rule does not keep weights of a cut chain alive
    chain.size_rule = SizeRule(partial(measured_roundings, twin, range(len(candidates)), size or config.size))
    return chain


def _as_chain(model: nn.Module, candidates: Sequence[Candidate], images: Tensor) -> Chain | None:
    """The model as a Chain; None if its modules do not provably run one after another."""
    if any(candidate.tap.key is not None for candidate in candidates):
        return None
    layouts = [candidate.layout for candidate in candidates]
    levels = Levels(FeatureInfo(c.layout.chs, c.layout.reduction, c.tap.name) for c in candidates)
    try:
        return Chain(model, levels, layouts, images)
    except ContractError:
        return None


def data_config(weights: Any) -> DataConfig:
    """The preprocessing that published weights declare."""
    transform = weights.transforms()
    (side,), (resized,) = transform.crop_size, transform.resize_size
    interpolation, crop = transform.interpolation.value, share(side, resized)
    return DataConfig((side, side), tuple(transform.mean), tuple(transform.std), interpolation, crop)


def _published(name: str, tag: str) -> Any:
    """The weights of that tag, or without a tag the default ones; None if the model has none."""
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
        arguments = {16: {"dilated": True}, 32: {}}  # for its last stage only
    elif "resne" in name:
        arguments = {stride: {"replace_stride_with_dilation": stages} for stride, stages in DILATED.items()}
    else:
        raise ArgumentError(f"torchvision/{name} cannot trade strides for dilation: leave output_stride out")
    if output_stride not in arguments:
        raise ArgumentError(f"output_stride={output_stride}: choose one of {list(arguments)}")
    return arguments[output_stride]


def _build(name: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models

    device = torch.get_default_device()
    try:
        if device.type != "meta":
            return third_party(models.get_model, name, **arguments)
        with torch.device("cpu"), _EmptyOnDevice(device):
            return third_party(models.get_model, name, **arguments).to(device)
    except ThirdPartyError as error:
        raise ArgumentError(f"torchvision/{name} cannot be built with {arguments}: {error}") from error


class _EmptyOnDevice(TorchFunctionMode):
    """Allocates parameters on a device, while tensors that builders compute with stay on the CPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = self.device
        return passed_on(func, *args, **kwargs)


def _load(model: nn.Module, published: Any, cache_dir: str | Path | None) -> None:
    """Load published weights in place, except for a classifier with another number of classes."""
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


def _adapt_first_conv(model: nn.Module, in_chans: int, name: str) -> None:
    """Change the number of input channels of the first convolution, in place."""
    path, conv = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if getattr(model, "transform_input", False):
        raise ArgumentError(f"torchvision/{name} normalizes three channels itself: leave in_chans={in_chans} out")
    weight = conv.weight.detach()
    target = TargetTensor(path, (len(weight), in_chans, *weight.shape[2:]), model)
    adapted = input_channels(weight, target) if in_chans > 0 else None
    if adapted is None:
        raise ArgumentError(f"in_chans={in_chans}: expected 1 or more")
    conv.in_channels, conv.weight = in_chans, nn.Parameter(adapted[0])


def _at_size(config: DataConfig, model: nn.Module) -> DataConfig:
    """The preprocessing with the image size of the model, if that is fixed."""
    size = _fixed_size(model)
    return config if size in (None, config.size) else replace(config, size=size)


def _fixed_size(model: Any) -> Size | None:
    """The only (height, width) that the model accepts; None if it accepts others."""
    from torchvision.models import MaxVit, VisionTransformer

    if isinstance(model, VisionTransformer):
        return model.image_size, model.image_size
    if isinstance(model, MaxVit):
        block: Any = model.blocks[0]
        height, width = block.grid_size
        return 4 * height, 4 * width
    return None
