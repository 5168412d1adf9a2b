"""create_model: from a name to a model or a feature extractor."""

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from . import bridges as bridges  # registers them
from .arguments import require_number, require_place
from .bridge_registry import bridge_of
from .building import Choice, Request, bridged, native, users
from .errors import ArgumentError, UnknownModelError
from .features import OutIndices
from .image_checks import Sides, image_sides
from .registry import Creation, Variant, lookup, suggestion
from .weights.checkpoint import Reading, Weights
from .weights.hub_format import architecture_in
from .weights.source import FOLDER, HUB, config_of
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output


@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    features_only: Literal[True],
    out_indices: OutIndices | None = None,
    out_names: Sequence[str] | None = None,
    output: Output = "list",
    feature_cls: str | None = None,
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    mmap: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> FeatureExtractWrapper: ...
@overload
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    features_only: Literal[False] = False,
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    mmap: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> nn.Module: ...
def create_model(
    model_name: str = "",
    pretrained: bool = False,
    *others: Any,
    features_only: bool = False,
    out_indices: OutIndices | None = None,
    out_names: Sequence[str] | None = None,
    output: Output = "list",
    feature_cls: str | None = None,
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    image_size: Sides | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    mmap: bool | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> nn.Module:
    """The model of that name: a classifier, or with `features_only` an extractor of multi-scale maps.

    model_name: one of `list_models()`; a tag after a dot chooses among its published weights: `resnet50.a1_in1k`. Or a
        model on the Hub, "hf-hub:owner/repo[@revision]", or in a folder, "local-dir:path", whose `config.json` says the
        rest; or one of another package: "timm/…", "torchvision/…", "transformers/…".
    pretrained: take the published weights: those with that tag, the default ones, or those beside that `config.json`.
    out_indices: levels to return, in this order; negatives count from the deepest, an int n means the last n, None all.
    out_names: the same by name.
    output: "list" of maps, "dict" from level name to map, or "tokens": pairs of a transformer's prefix tokens and map.
    feature_cls: timm's word for its kinds of extractors, which are one here: "dict" is `output="dict"`, and "list",
        "getter", "hook" and "fx" are `output="list"`.
    checkpoint_path: weights instead: a file, a folder, a URL, "hf-hub:owner/repo[@revision]", or tensors by name. Every
        tensor must fit; `load_report` of the model says what was done.
    output_stride: 8, 16 or 32: the coarsest reduction, kept by dilation.
    in_chans, num_classes: of the images and the logits; 0 classes give pooled features. None is as the weights have
        it. A classifier of another size than the weights' is left at its random initialisation.
    image_size: (height, width) of the images in pixels, or one side: `data_config.size` follows, and a ViT gets a grid
        of positions of that size, to which its weights are interpolated. None is as the weights have it.
    auto_mapping: recognise names that other programs write into checkpoints; False takes the model's own names alone.
    layout, container: the program that named the tensors, and the entry they are under; see `load_weights`.
    cache_dir: where downloads are kept.
    mmap: leave weights in pages of their file, which are read when they are first used; whoever then cuts that file off
        ends the process. By default only files in the Hub's cache stay there, and others are read into memory.
    device, dtype: of the parameters; by default the CPU and float32.
    arch: further fields of the family's configuration.

    Raises UnknownModelError, ArgumentError, OutIndicesError, CheckpointError, WeightsNotFoundError, and ContractError
    for a user's model that gives no maps.
    """
    _require_name(model_name, arch, others)
    if not features_only and (out_indices, out_names, feature_cls, output) != (None, None, None, "list"):
        raise ArgumentError("out_indices, out_names and output choose among maps: pass features_only=True too")
    if pretrained and checkpoint_path is not None:
        raise ArgumentError("pretrained=True and checkpoint_path both say where weights come from: pass one of them")
    require_place(device, dtype)
    given = {"output_stride": output_stride, "in_chans": in_chans, "num_classes": num_classes, **arch}
    if image_size is not None:
        height, width = image_sides(image_size)
        given["image_size"] = height if height == width else (height, width)
    request = Request(
        model_name,
        pretrained,
        checkpoint_path,
        {field: value for field, value in given.items() if value is not None},
        Choice(out_indices, out_names, _output(output, feature_cls)) if features_only else None,
        Reading(auto_mapping, layout, container, cache_dir, mmap),
        device,
        dtype,
        ARGUMENTS,
    )
    for argument, least in {"in_chans": 1, "num_classes": 0, "output_stride": 1}.items():
        if argument in request.given:
            require_number(request.given[argument], argument, least)
    if (bridge := bridge_of(model_name)) is not None:
        return bridged(request, *bridge)
    entry, architecture, published = find(model_name, cache_dir)
    if isinstance(entry, Variant):
        return native(request, entry, architecture, published)
    return users(request, entry)


VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
ARGUMENTS = tuple(p.name for p in signature(create_model).parameters.values() if p.kind not in VARIADIC)
FEATURE_CLS: dict[str | None, Output] = {
    **dict.fromkeys((None, "list", "getter", "hook", "fx"), "list"),
    "dict": "dict",
}


def _require_name(model_name: object, arch: Mapping[str, Any], others: Sequence[Any]) -> None:
    """Raise ArgumentError unless a name is there, and nothing but `pretrained` behind it."""
    if "name" in arch and not model_name:
        raise ArgumentError(
            f"create_model has no argument 'name' (did you mean 'model_name'?): pass model_name={arch['name']!r}"
        )
    if not isinstance(model_name, str) or not model_name:
        raise ArgumentError(f"model_name={model_name!r}: expected a name, such as 'resnet50'; see featx.list_models()")
    if others:
        raise ArgumentError(
            f"create_model takes model_name and pretrained by position, and got {list(others)} behind them: pass these "
            "by name, such as checkpoint_path=... or cache_dir=..."
        )


def _output(output: Output, feature_cls: str | None) -> Output:
    if feature_cls not in FEATURE_CLS:
        raise ArgumentError(f"feature_cls={feature_cls!r}: choose one of {[*FEATURE_CLS][1:]}, or pass output= alone")
    return FEATURE_CLS[feature_cls] if output == "list" else output


def find(name: str, cache_dir: str | Path | None = None) -> tuple[Variant[Any] | Creation, str, str]:
    """The entry of a name, the name of its architecture, and where its published weights are, "" if nowhere."""
    if name.startswith((HUB, FOLDER)):
        architecture = architecture_in(config_of(name, cache_dir), name)
        try:
            return lookup(architecture), architecture, name
        except UnknownModelError as error:
            raise UnknownModelError(f"config.json of {name} names a model that is not native here: {error}") from error
    base, _, tag = name.partition(".")
    if "/" in name or not base:
        raise UnknownModelError(f"no model is named {name!r}; {suggestion(name)}")
    entry = lookup(base)
    tags = entry.weights if isinstance(entry, Variant) else ()
    if tag and tag not in tags:
        raise UnknownModelError(f"{base} has no weights tagged {tag!r}; it has {list(tags)}")
    tag = tag or next(iter(tags), "")
    if isinstance(entry, Variant):
        entry = entry.tagged(base, tag)
    return entry, base, f"{HUB}timm/{base}.{tag}" if tag else ""
