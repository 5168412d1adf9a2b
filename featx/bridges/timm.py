"""Bridge to timm: all its architectures, under timm's names."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError, UnknownModelError, WeightsNotFoundError
from ..image_checks import Sides, image_sides
from ..spelling import closest
from ..tracing.third_party_errors import passed_on
from ..weights.hub_config import require_limits
from ..weights.hub_format import labels_in, lacking, preprocessing_of, require_plain
from .bridged_pyramid import BridgedPyramid
from .timm_checkpoint import load as load
from .timm_folder import PRETRAINED_CFG, described_by
from .timm_image_size import any_size, arguments_for, parameters_of
from .timm_levels import input_size, measure
from .timm_map_reader import TimmMapReader

# Arguments of timm.create_model for what featx does itself.
REFUSED = ("features_only", "out_indices", "feature_cls", "checkpoint_path")
# Layers of timm that a `config.json` may name in its `mlp_layer`.
MLPS = ("Mlp", "GluMlp", "GatedMlp", "SwiGLU", "SwiGLUPacked")


def names() -> list[str]:
    """Every architecture of the installed timm."""
    import timm

    return timm.list_models()


def pyramid(model: nn.Module) -> BridgedPyramid:
    """A Pyramid of a model of timm. ContractError if the model returns no maps."""
    return BridgedPyramid(model, TimmMapReader(), measure(model))


def build(
    name: str,
    *,
    pretrained: bool = False,
    cache_dir: str | Path | None = None,
    image_size: Sides | None = None,
    **arch: Any,
) -> nn.Module:
    """timm's own model.

    Args:
        name: "architecture" or "architecture.tag".
        pretrained: load the weights with the tag, or timm's default weights.
        cache_dir: folder for downloads.
        image_size: (height, width), or the side of a square, in pixels to build the architecture for; by default that
            of its weights.
        arch: arguments of the architecture's class, such as `in_chans`; None stands for the default. Transformers are
            built for any image size if they support it; `dynamic_img_size=False` builds one for its own size only, as
            timm does by default.

    Raises:
        UnknownModelError: timm has no such architecture or tag.
        ArgumentError: an argument is invalid for the architecture.
        WeightsNotFoundError: the weights do not exist or cannot be downloaded.
    """
    _require_name(name)
    if pretrained:
        _require_weights(name)
    arguments = {key: value for key, value in arch.items() if value is not None}
    _refuse(name, [argument for argument in arguments if argument in REFUSED], "featx does that itself")
    if image_size is None:
        arguments |= any_size(name, arguments, create)
    else:
        arguments |= arguments_for(image_size, name, arguments, create)
    model: Any = create(name, arguments, pretrained=pretrained, cache_dir=cache_dir)
    if image_size is not None:  # timm keeps the image size there
        model._traits = {**getattr(model, "_traits", {}), "img_size": image_sides(image_size)}
    return model


def restore(config: Mapping[str, Any], where: str, *, image_size: Sides | None = None, **arch: Any) -> nn.Module:
    """timm's own model that a `config.json` describes, with random weights.

    Args:
        config: the parsed file.
        where: the folder or repository of the file, for messages.
        image_size: as for `build`, instead of the size that the file states.
        arch: arguments of the architecture's class, instead of those that the file states.

    Raises:
        UnknownModelError: timm has no such architecture.
        CheckpointError: the file describes no model that can be built, or one far larger than the published one.
        ArgumentError: an argument in `arch` is invalid for the architecture.
    """
    name, stated, cfg = described_by(config, where)
    try:
        _require_name(name)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"config.json of {where} names a model that neither featx nor timm has: {error}"
        ) from error
    arguments = _checked(name, stated, cfg, where)
    if image_size is not None:
        arguments.pop("img_size", None)
    arguments |= {key: value for key, value in arch.items() if value is not None}
    model: Any = build(name, image_size=image_size, **arguments)
    model.label_names = labels_in(config)
    return model


def _checked(name: str, stated: Mapping[str, Any], cfg: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of a `config.json`, if timm's class has them and the model can be built within limits."""
    import timm

    with torch.device("meta"):
        known = parameters_of(type(create(name, {})))
    if unknown := sorted(stated.keys() - known):
        raise CheckpointError(f"config.json of {where} has {lacking(unknown)}")
    published = timm.get_pretrained_cfg(name)
    defaults = published.to_dict(remove_source=True) if published else {}
    layers = {key: getattr(timm.layers, value) for key, value in stated.items() if key == "mlp_layer" and value in MLPS}
    arguments = {**stated, **layers, "pretrained_cfg": {**defaults, **cfg, "architecture": name.partition(".")[0]}}
    require_limits(partial(create, name, arguments), partial(create, name, {}), where)
    return arguments


def describe(model: Any) -> dict[str, Any]:
    """The `config.json` from which `restore` builds the model. ArgumentError if JSON cannot represent an argument."""
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "architecture" not in cfg:
        raise ArgumentError(f"{type(model).__name__} was not built by timm.create_model: save its state_dict() instead")
    given: dict[str, Any] = dict(getattr(model, "_model_args", {}))
    arguments = {key: _name_of(key, value) for key, value in given.items() if key != "num_classes"}
    require_plain(arguments, f"timm/{cfg['architecture']}")
    stated = {key: cfg[key] for key in PRETRAINED_CFG if cfg.get(key) is not None}
    stated["input_size"] = input_size(model)
    stated |= preprocessing_of(model).get("pretrained_cfg", {})
    return {
        "architecture": cfg["architecture"],
        "num_classes": model.num_classes,
        "model_args": arguments,
        "featx": {"package": "timm"},
        "pretrained_cfg": {**stated, "num_classes": model.num_classes},
    }


def _name_of(argument: str, value: Any) -> Any:
    """The name of a layer that a `config.json` may contain; any other value itself."""
    import timm

    layers = {id(getattr(timm.layers, name)): name for name in MLPS} if argument == "mlp_layer" else {}
    return layers.get(id(value), value)


def create(name: str, arguments: Mapping[str, Any], **options: Any) -> nn.Module:
    """The result of timm.create_model, whose errors are translated."""
    import timm

    try:
        return passed_on(timm.create_model, name, **options, **arguments)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in arguments:
            raise
        with torch.device("meta"):
            accepted = sorted(parameters_of(type(create(name, {}))))
        _refuse(name, [unknown[1]], f"its class has {accepted}", error)
        raise
    except AssertionError as error:
        if "output_stride" not in arguments:
            raise
        stride = arguments["output_stride"]
        raise ArgumentError(f"timm/{name} cannot be built with output_stride={stride}: leave it out") from error
    except OSError as error:
        raise WeightsNotFoundError(
            f"timm could not load the weights of {name} ({type(error).__name__}: {str(error).partition(chr(10))[0]}): "
            "connect, set HF_ENDPOINT to a mirror, or pass pretrained=False"
        ) from error


def _refuse(name: str, arguments: list[str], reason: str, cause: Exception | None = None) -> None:
    if "output_stride" in arguments:
        raise ArgumentError(f"timm/{name} cannot trade strides for dilation: leave output_stride out") from cause
    if arguments:
        raise ArgumentError(f"timm/{name} has no argument {', '.join(map(repr, arguments))}: {reason}") from cause


def _require_name(name: str) -> None:
    import timm
    from timm.models import get_arch_pretrained_cfgs

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = closest(architecture, timm.list_models())
        hint = f"the closest are {close}" if close else "see featx.list_models('timm/*')"
        raise UnknownModelError(f"timm has no architecture {architecture!r}; {hint}")
    tags = [known.partition(".")[2] for known in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise UnknownModelError(f"timm's {architecture} has no weights tagged {tag!r}; it has {tags}")


def _require_weights(name: str) -> None:
    import timm

    published = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise WeightsNotFoundError(f"timm has no published weights of {name}: pass pretrained=False")
