"""Models of timm under the contract: every architecture it has, by its name there."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, UnknownModelError, WeightsNotFoundError
from ..image_checks import Sides, image_sides
from ..spelling import closest
from ..tracing.third_party_errors import passed_on
from .bridged_pyramid import BridgedPyramid
from .timm_levels import measure
from .timm_reading import TimmReading
from .timm_sizes import any_size, arguments_for, parameters_of

# Arguments of timm.create_model that ask for what featx does itself.
OURS = ("features_only", "out_indices", "feature_cls", "checkpoint_path")

Given = Mapping[str, Any]


def names() -> list[str]:
    """Every architecture of the installed timm."""
    import timm

    return timm.list_models()


def pyramid(model: nn.Module) -> BridgedPyramid:
    """The maps of a model of timm; ContractError if it gives none."""
    return BridgedPyramid(model, TimmReading(), measure(model))


def build(
    name: str,
    *,
    pretrained: bool = False,
    cache_dir: str | Path | None = None,
    image_size: Sides | None = None,
    **arch: Any,
) -> nn.Module:
    """timm's own model of that name, "architecture" or "architecture.tag".

    pretrained: load the weights with that tag, or timm's default ones, as timm does.
    image_size: (height, width) or the side of a square in pixels: the size to build the architecture for, where it is
        not the one of its weights.
    arch: arguments of the architecture's class, such as `in_chans`; None is its default. Transformers that can take
        images of any size do; `dynamic_img_size=False` builds one for its own size alone, as timm does by default.

    Raises UnknownModelError, ArgumentError, and WeightsNotFoundError.
    """
    _require_name(name)
    if pretrained:
        _require_weights(name)
    given = {key: value for key, value in arch.items() if value is not None}
    _refuse(name, [word for word in given if word in OURS], "featx does that itself")
    given |= any_size(name, given, create) if image_size is None else arguments_for(image_size, name, given, create)
    model: Any = create(name, given, pretrained=pretrained, cache_dir=cache_dir)
    if image_size is not None:  # timm itself keeps the size that it builds for there
        model._traits = {**getattr(model, "_traits", {}), "img_size": image_sides(image_size)}
    return model


def create(name: str, given: Given, **how: Any) -> nn.Module:
    """What timm itself creates, with its errors translated."""
    import timm

    try:
        return passed_on(timm.create_model, name, **how, **given)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None or unknown[1] not in given:
            raise
        _refuse(name, [unknown[1]], _accepted(name), error)
        raise
    except AssertionError as error:
        if "output_stride" not in given:
            raise
        stride = given["output_stride"]
        raise ArgumentError(f"timm/{name} cannot be built with output_stride={stride}: leave it out") from error
    except OSError as error:
        raise WeightsNotFoundError(
            f"timm could not load the weights of {name} ({type(error).__name__}: {str(error).partition(chr(10))[0]}): "
            "connect, set HF_ENDPOINT to a mirror, or pass pretrained=False"
        ) from error


def _refuse(name: str, words: list[str], why: str, cause: Exception | None = None) -> None:
    if "output_stride" in words:
        raise ArgumentError(f"timm/{name} cannot trade strides for dilation: leave output_stride out") from cause
    if words:
        raise ArgumentError(f"timm/{name} has no argument {', '.join(map(repr, words))}: {why}") from cause


def _accepted(name: str) -> str:
    with torch.device("meta"):
        return f"its class has {sorted(parameters_of(type(create(name, {}))))}"


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
