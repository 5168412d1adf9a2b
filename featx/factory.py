"""create_model: from a name to a model or a feature extractor."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from inspect import Signature, signature
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_overloads, get_type_hints, overload

import torch
from torch import nn

from . import bridges as bridges  # registers them
from .argument_advice import refuse_unknown
from .arguments import require_annotated, require_device_dtype, require_number
from .backbone import Backbone
from .bridge_registry import bridge_named, bridge_of, bridged_packages
from .bridged_factory import bridged_model, chosen_extractor
from .errors import ArgumentError, CheckpointError, ContractError, UnknownModelError, WeightsNotFoundError
from .features import OutIndices
from .image_checks import Sides, image_sides
from .meta_init import init_empty_weights
from .preprocessing import DataConfig
from .registry import Creation, Variant, lookup, suggestion
from .weights.checkpoint import Checkpoint, LoadOptions, Weights, open_checkpoint
from .weights.download import HUB, config_of, is_address
from .weights.hub_config import plain_arguments, require_buildable
from .weights.hub_format import (
    CREATED,
    Created,
    architecture_in,
    arguments_in,
    is_native,
    labels_in,
    levels_in,
    preprocessing_in,
)
from .weights.load import family_names, fill_model, full_keys, load, move_model
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import Output, source_of
from .wrappers.transparent import innermost


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
    **arguments: Any,
) -> nn.Module:
    """Create the model of that name: a classifier, or with `features_only` an extractor of multi-scale maps.

    Args:
        model_name: one of `list_models()`; a tag after a dot selects one of its published weights: `resnet50.a1_in1k`.
            Or a model on the Hub, "hf-hub:owner/repo[@revision]", or in a folder, "local-dir:path", which is described
            by its `config.json`; or a model of another package: "timm/…", "torchvision/…", "transformers/…".
        pretrained: load the published weights: those of the tag, the default ones, or those beside that `config.json`.
        features_only: return a `FeatureExtractWrapper`, which returns maps, instead of a classifier.
        out_indices: the levels to return, in this order; negative indices count from the deepest level, an int n means
            the last n levels, None all levels.
        out_names: the levels to return, by name.
        output: "list" of maps, "dict" from level name to map, or "tokens": pairs of a transformer's prefix tokens
            (N, tokens, chs) and map.
        feature_cls: timm's name for its kinds of extractors, which are one here: "dict" is `output="dict"`, and "list",
            "getter", "hook" and "fx" are `output="list"`.
        checkpoint_path: weights to load instead: a file, a folder, a URL, "hf-hub:owner/repo[@revision]", or tensors by
            name. Every tensor must fit; `load_report` of the model lists what was converted.
        output_stride: 8, 16 or 32: the largest reduction; strides beyond it become dilation.
        in_chans: channels of the images; None keeps the checkpoint's value.
        num_classes: number of logits; 0 gives pooled features, None keeps the checkpoint's value. A classifier of
            another size than the checkpoint's keeps its random initialization.
        image_size: (height, width) of the images in pixels, or one side. It sets `data_config.size`, and the grid of
            position embeddings of a ViT, to which its weights are interpolated. None keeps the checkpoint's value.
        auto_mapping: recognize the key names of other programs in checkpoints; False accepts only the model's own keys.
        layout: the program that named the tensors; see `load_weights`.
        container: the entry of the checkpoint that holds the tensors; see `load_weights`.
        cache_dir: the folder for downloads.
        mmap: map the weights from their file instead of reading them; truncating the file later then ends the process.
            By default, only files in the Hub's cache are mapped.
        device: of the parameters; the CPU by default.
        dtype: of the parameters; float32 by default.
        **arch: further fields of the family's configuration.

    Returns:
        The model, in training mode.

    Raises:
        UnknownModelError: no model has that name.
        ArgumentError: an argument is invalid.
        OutIndicesError: a level does not exist.
        CheckpointError: the checkpoint cannot be read, or does not fit.
        WeightsNotFoundError: there are no such weights.
        ContractError: a user-defined model returns no maps.
    """
    _require_name(model_name, arguments, others)
    if not features_only and (out_indices, out_names, feature_cls, output) != (None, None, None, "list"):
        raise ArgumentError("out_indices, out_names and output choose among maps: pass features_only=True too")
    options, others_given = LoadOptions.split(arguments, pretrained)
    require_device_dtype(options.device, options.dtype)
    given = _given(others_given)
    levels = None
    if features_only:
        levels = {"out_indices": out_indices, "out_names": out_names, "output": _output(output, feature_cls)}
    for argument, least in {"in_chans": 1, "num_classes": 0, "output_stride": 1}.items():
        if argument in given:
            require_number(given[argument], argument, least)
    if (bridge := bridge_of(model_name)) is not None:
        return bridged_model(*bridge, given, levels, options)
    entry, published = find(model_name, options.cache_dir)
    if isinstance(entry, Variant):
        return _native(entry, published, given, levels, options)
    if isinstance(entry, ModuleType):
        return bridged_model(entry, model_name, given, levels, options)
    return _users(entry, published, given, levels, options)


def _signature() -> Signature:
    """That of both overloads together, which `help` and notebooks show of `create_model`."""
    extracting = signature(get_overloads(create_model)[0])
    as_well = {"features_only": {"default": False, "annotation": bool}}
    parameters = [p.replace(**as_well.get(p.name, {})) for p in extracting.parameters.values()]
    return extracting.replace(parameters=parameters, return_annotation=nn.Module)


vars(create_model)["__signature__"] = _signature()
ARGUMENTS = tuple(p.name for p in signature(create_model).parameters.values() if p.kind is not p.VAR_KEYWORD)
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


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the configuration that are not None; `image_size` is one side if the sides are equal."""
    given = {"output_stride": None, "in_chans": None, "num_classes": None, **arguments}
    size = given.pop("image_size", None)
    if size is not None:
        height, width = image_sides(size)
        given["image_size"] = height if height == width else (height, width)
    return {field: value for field, value in given.items() if value is not None}


class Published(NamedTuple):
    """Where the published weights of an architecture are.

    where: "" if nowhere. config: their `config.json` where it has been read to find the architecture; empty otherwise.
    """

    architecture: str
    where: str
    config: Mapping[str, Any]


def find(name: str, cache_dir: str | Path | None = None) -> tuple[Variant[Any] | Creation | ModuleType, Published]:
    """The entry of a name, and where its published weights are. The entry of another package's model is its bridge."""
    if is_address(name):
        config = config_of(name, cache_dir)
        published = Published(architecture_in(config, name), name, config)
        return _described(published), published
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
    return entry, Published(base, f"{HUB}timm/{base}.{tag}" if tag else "", {})


def _described(published: Published) -> Variant[Any] | Creation | ModuleType:
    """The entry of the architecture that a `config.json` names; timm's bridge if its arguments are timm's alone."""
    if package := published.config.get("featx", {}).get("package"):
        if package not in bridged_packages():
            raise CheckpointError(f"config.json of {published.where} names the unknown package {package!r}")
        return bridge_named(package)
    try:
        entry = lookup(published.architecture)
    except UnknownModelError:
        entry = None
    if entry is None or (isinstance(entry, Variant) and not is_native(published.config, entry.config)):
        return bridge_named("timm")
    return entry


def _native(
    variant: Variant[Any],
    published: Published,
    given: Mapping[str, Any],
    levels: Mapping[str, Any] | None,
    options: LoadOptions,
) -> nn.Module:
    """A model of a family, with the weights that are published, those of a checkpoint, or random ones."""
    architecture, where, described = published
    weights = _where(published) if options.pretrained else options.checkpoint_path
    if options.pretrained and not described:
        described = config_of(where, options.cache_dir)
    known = [field.name for field in fields(variant.config)]
    stated = arguments_in(described, variant.config, where)
    # a family without a grid of positions is built alike for all sizes
    own = {field: value for field, value in given.items() if field in known or field != "image_size"}
    config = _configured(architecture, variant, {**stated, **own})
    if stated:
        require_buildable(variant, config, where)
    whole, checkpoint = _built(variant, config, weights, given, options)
    whole.architecture, whole.tag = architecture, _tag(architecture, where)
    whole.data_config, whole.label_names = preprocessing_in(described, whole.data_config, where), labels_in(described)
    if "image_size" in given:
        whole.data_config = replace(whole.data_config, size=image_sides(given["image_size"]))
    model = whole if levels is None else chosen_extractor(whole, levels, levels_in(described))
    if checkpoint is None:
        return model.to(options.device, options.dtype)
    resized = (f"{whole.last_linear}.",) if "num_classes" in given else ()
    grid = _grid(variant, replace(variant.config, **stated)) if options.pretrained and RESIZING & own.keys() else None
    fill_model(model, checkpoint, resized=resized, grid=grid, device=options.device, dtype=options.dtype)
    return model


def _users(
    create: Creation,
    published: Published,
    given: dict[str, Any],
    levels: Mapping[str, Any] | None,
    options: LoadOptions,
) -> nn.Module:
    """What a user's creation function returns."""
    choice: dict[str, Any] = {}
    saved: Mapping[str, Any] = published.config.get("featx", {})
    if levels is not None:
        if levels["out_indices"] is None and levels["out_names"] is None:
            levels = {**levels, "out_indices": saved.get("out_indices")}
        choice = {"features_only": True, **{k: value for k, value in levels.items() if value not in (None, "list")}}
    given = {**plain_arguments(saved.get("arguments", {}), published.where), **given}
    if saved and options.pretrained:
        options = replace(options, pretrained=False, checkpoint_path=published.where)
    model = _call(create, options.pretrained, given, choice)
    setattr(innermost(source_of(model)), CREATED, Created(create.__name__, given))
    return _loaded(model, options)


def _loaded(model: nn.Module, options: LoadOptions) -> nn.Module:
    """The model itself, in its place, with the tensors of the checkpoint if there is one."""
    move_model(model, options.device, options.dtype)
    if options.checkpoint_path is not None:
        load(model, options.checkpoint_path, options)
    return model


RESIZING = {"image_size", "patch"}  # fields with which a grid of positions is not that of the weights


def _grid(variant: Variant[Any], config: Any) -> tuple[int, int] | None:
    """Rows and columns of the positions of a model of this configuration; None if it has none."""
    return getattr(_empty(variant, config), "grid", None)


def _tag(architecture: str, published: str) -> str:
    """The tag of the weights that are published there; "" if they are not timm's."""
    repository, prefix = published.partition("@")[0], f"{HUB}timm/{architecture}."
    return repository.removeprefix(prefix) if repository.startswith(prefix) else ""


def _where(published: Published) -> str:
    if not published.where:
        raise WeightsNotFoundError(
            f"{published.architecture} has no published weights: pass checkpoint_path= or pretrained=False"
        )
    return published.where


def _built(
    variant: Variant[Any], config: Any, weights: Weights | None, given: Mapping[str, Any], options: LoadOptions
) -> tuple[Backbone, Checkpoint | None]:
    """The model, empty if there are weights to fill it, and these, opened.

    It has the settings of the program that wrote the weights, unless the caller has given others.
    """
    if weights is None:
        return _configured_as(variant.build(config), config, variant.data), None
    model = _empty(variant, config)
    checkpoint = open_checkpoint(weights, full_keys(model), family_names(model), options)
    layout = checkpoint.layout
    stated = {**config.stated_by(checkpoint.state.keys()), **(layout.settings if layout else {})}
    settings = {field: value for field, value in stated.items() if field not in given}
    if settings:
        config = replace(config, **settings)
        model = _empty(variant, config)
    data = replace(variant.data, **layout.data) if layout else variant.data
    return _configured_as(model, config, data), checkpoint


def _empty(variant: Variant[Any], config: Any) -> Backbone:
    """The model without values, which takes no memory."""
    with init_empty_weights():
        return variant.build(config)


def _configured_as(model: Backbone, config: Any, data: DataConfig) -> Backbone:
    model.config, model.data_config = config, data
    return model


def _configured(name: str, variant: Variant[Any], given: dict[str, Any]) -> Any:
    """The variant's configuration with the given fields; ArgumentError naming every field it does not have."""
    known = [field.name for field in fields(variant.config)]
    if "output_stride" in given and "output_stride" not in known:
        raise ArgumentError(f"{name} cannot trade strides for dilation: leave output_stride out")
    refuse_unknown(name, given, known, ARGUMENTS)
    kinds = get_type_hints(type(variant.config))
    for field, value in given.items():
        require_annotated(value, field, kinds[field])
    return replace(variant.config, **given)


def _call(create: Creation, pretrained: bool, given: dict[str, Any], choice: dict[str, Any]) -> nn.Module:
    """What a user's creation function returns; ArgumentError if it does not take what was given."""
    name, parameters = create.__name__, signature(create).parameters
    if "in_chans" in given and "in_chans" not in parameters and "in_channels" in parameters:
        given = {**given, "in_channels": given["in_chans"]}
        del given["in_chans"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        refuse_unknown(name, [*given, *choice], list(parameters), ARGUMENTS)
    model = create(pretrained, **given, **choice)
    if choice and not isinstance(model, FeatureExtractWrapper):
        raise ContractError(
            f"{name} returned a {type(model).__name__} although features_only=True was asked: let it return "
            "build_model_with_cfg(Class, pretrained, **kwargs)"
        )
    return model
