"""create_model: from a name to a model or a feature extractor."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn

from .backbone import Backbone
from .errors import ArgumentError, ContractError, UnknownModelError, WeightsNotFoundError
from .features import OutIndices
from .preprocessing import DataConfig, from_hub
from .registry import Creation, Variant, lookup
from .weights import load_weights
from .weights.assign import fill
from .weights.checkpoint import Checkpoint, Reading, Weights, open_checkpoint
from .weights.hub_format import architecture_in, arguments_in, labels_in, levels_in
from .weights.load import families, names_of
from .weights.source import FOLDER, HUB, config_of
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output

# Other libraries' names for our arguments.
NEAR_MISSES = {
    "feature_only": "features_only",
    "in_channels": "in_chans",
    "n_classes": "num_classes",
    "num_labels": "num_classes",
    "out_features": "out_names",
    "weights": "checkpoint_path",
    "checkpoint": "checkpoint_path",
    "replace_stride_with_dilation": "output_stride",
}


@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    features_only: Literal[True],
    out_indices: OutIndices | None = None,
    out_names: Sequence[str] | None = None,
    output: Output = "list",
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> FeatureExtractWrapper: ...
@overload
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    features_only: Literal[False] = False,
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> nn.Module: ...
def create_model(
    name: str,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: OutIndices | None = None,
    out_names: Sequence[str] | None = None,
    output: Output = "list",
    checkpoint_path: Weights | None = None,
    output_stride: int | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    auto_mapping: bool = True,
    layout: str | None = None,
    container: str | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arch: Any,
) -> nn.Module:
    """The model of that name: a classifier, or with `features_only` an extractor of multi-scale maps.

    name: one of `list_models()`; a tag after a dot chooses among its published weights: `resnet50.a1_in1k`. Or a model
        on the Hub, "hf-hub:owner/repo[@revision]", or in a folder, "local-dir:path", whose `config.json` says the rest.
    pretrained: take the published weights: those with that tag, the default ones, or those beside that `config.json`.
    out_indices: levels to return, in this order; negatives count from the deepest, an int n means the last n, None all.
    out_names: the same by name.
    output: "list" of maps, "dict" from level name to map, or "tokens": pairs of a transformer's prefix tokens and map.
    checkpoint_path: weights instead: a file, a folder, a URL, "hf-hub:owner/repo[@revision]", or tensors by name. Every
        tensor must fit; `load_report` of the model says what was done.
    output_stride: 8, 16 or 32: the coarsest reduction, kept by dilation.
    in_chans, num_classes: of the images and the logits; 0 classes give pooled features. None is as the weights have
        it. A classifier of another size than the weights' is left at its random initialisation.
    auto_mapping: recognise names that other programs write into checkpoints; False takes the model's own names alone.
    layout, container: the program that named the tensors, and the entry they are under; see `load_weights`.
    cache_dir: where downloads are kept.
    device, dtype: of the parameters; by default the CPU and float32.
    arch: further fields of the family's configuration.

    Raises UnknownModelError, ArgumentError, OutIndicesError, CheckpointError, WeightsNotFoundError, and ContractError
    for a user's model that gives no maps.
    """
    if not features_only and (out_indices is not None or out_names is not None or output != "list"):
        raise ArgumentError("out_indices, out_names and output choose among maps: pass features_only=True too")
    if pretrained and checkpoint_path is not None:
        raise ArgumentError("pretrained=True and checkpoint_path both say where weights come from: pass one of them")
    entry, architecture, published = _find(name)
    given = {"output_stride": output_stride, "in_chans": in_chans, "num_classes": num_classes, **arch}
    given = {field: value for field, value in given.items() if value is not None}
    reading = Reading(auto_mapping, layout, container, cache_dir)
    if not isinstance(entry, Variant):
        choice = {"out_indices": out_indices, "out_names": out_names, "output": None if output == "list" else output}
        choice = {"features_only": True, **{k: v for k, v in choice.items() if v is not None}} if features_only else {}
        model = _call(entry, pretrained, given, choice)
        if checkpoint_path is not None:
            load_weights(model, checkpoint_path, **asdict(reading))
        return model.to(device, dtype)

    weights = _published(architecture, published) if pretrained else checkpoint_path
    described = config_of(published, cache_dir) if pretrained or published == name else {}
    stated = arguments_in(described, [field.name for field in fields(entry.config)], published)
    config = _configured(name, entry, {**stated, **given})
    whole, checkpoint = _built(entry, architecture, config, given, weights, reading)
    whole.data_config = from_hub(described.get("pretrained_cfg", {}), whole.data_config)
    whole.label_names = labels_in(described)
    if out_indices is None and out_names is None:
        out_indices = levels_in(described)
    model = FeatureExtractWrapper(whole, out_indices, out_names=out_names, output=output) if features_only else whole
    if checkpoint is None:
        return model.to(device, dtype)
    resized = () if num_classes is None else (f"{whole.last_linear}.",)
    fill(model, checkpoint, resized=resized, device=device, dtype=dtype)
    return model


def _find(name: str) -> tuple[Variant[Any] | Creation, str, str]:
    """The entry of a name, the name of its architecture, and where its published weights are, "" if nowhere."""
    if name.startswith((HUB, FOLDER)):
        architecture = architecture_in(config_of(name), name)
        return lookup(architecture), architecture, name
    base, _, tag = name.partition(".")
    entry = lookup(base)
    tags = entry.weights if isinstance(entry, Variant) else ()
    if tag and tag not in tags:
        raise UnknownModelError(f"{base} has no weights tagged {tag!r}; it has {list(tags)}")
    tag = tag or next(iter(tags), "")
    return entry, base, f"{HUB}timm/{base}.{tag}" if tag else ""


def _published(architecture: str, where: str) -> str:
    if not where:
        raise WeightsNotFoundError(
            f"{architecture} has no published weights: pass checkpoint_path= or pretrained=False"
        )
    return where


def _built(
    variant: Variant[Any], name: str, config: Any, given: dict[str, Any], weights: Weights | None, reading: Reading
) -> tuple[Backbone, Checkpoint | None]:
    """The model, empty if there are weights to fill it, and these, opened.

    It has the settings of the program that wrote the weights, unless the caller has `given` others.
    """
    if weights is None:
        return _named(variant.build(config), name, config, variant.data), None
    model = _empty(variant, config)
    checkpoint = open_checkpoint(weights, names_of(model), families(model), reading)
    layout = checkpoint.layout
    settings = {field: value for field, value in layout.settings.items() if field not in given} if layout else {}
    if settings:
        config = replace(config, **settings)
        model = _empty(variant, config)
    data = replace(variant.data, **layout.data) if layout else variant.data
    return _named(model, name, config, data), checkpoint


def _empty(variant: Variant[Any], config: Any) -> Backbone:
    """The model without values, which takes no memory."""
    with torch.device("meta"):
        return variant.build(config)


def _named(model: Backbone, name: str, config: Any, data: DataConfig) -> Backbone:
    model.architecture, model.config, model.data_config = name, config, data
    return model


def _configured(name: str, variant: Variant[Any], given: dict[str, Any]) -> Any:
    """The variant's configuration with the given fields; ArgumentError naming every field it does not have."""
    known = [field.name for field in fields(variant.config)]
    if "output_stride" in given and "output_stride" not in known:
        raise ArgumentError(f"{name} cannot trade strides for dilation: leave output_stride out")
    _refuse_unknown(name, given, known)
    return replace(variant.config, **given)


def _refuse_unknown(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    arguments = [*_arguments(), *known]
    problems = []
    for word in given:
        if word not in known:
            close = NEAR_MISSES.get(word) or next(iter(get_close_matches(word, arguments, n=1)), None)
            problems.append(f"{word!r}" + (f" (did you mean {close!r}?)" if close else ""))
    if problems:
        raise ArgumentError(f"{name} has no argument {', '.join(problems)}; its configuration has {list(known)}")


def _arguments() -> list[str]:
    return [p.name for p in signature(create_model).parameters.values() if p.kind is not p.VAR_KEYWORD]


def _call(create: Creation, pretrained: bool, given: dict[str, Any], choice: dict[str, Any]) -> nn.Module:
    """What a user's creation function returns; ArgumentError if it does not take what was given."""
    name, parameters = create.__name__, signature(create).parameters
    if "in_chans" in given and "in_chans" not in parameters and "in_channels" in parameters:
        given = {**given, "in_channels": given["in_chans"]}
        del given["in_chans"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(name, [*given, *choice], list(parameters))
    model = create(pretrained, **given, **choice)
    if choice and not isinstance(model, FeatureExtractWrapper):
        raise ContractError(
            f"{name} returned a {type(model).__name__} although features_only=True was asked: let it return "
            "build_model_with_cfg(Class, pretrained, **kwargs)"
        )
    return model
