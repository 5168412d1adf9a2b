"""Models built from what `create_model` was asked for: a family's, a user's, or another package's."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from types import ModuleType
from typing import Any, get_type_hints

import torch
from torch import nn

from .arguments import require_kind
from .backbone import Backbone
from .empty import without_values
from .errors import ArgumentError, ContractError, WeightsNotFoundError
from .features import OutIndices
from .image_checks import image_sides
from .preprocessing import DataConfig
from .registry import Creation, Variant
from .spelling import closest
from .weights import load_weights
from .weights.checkpoint import Checkpoint, Reading, Weights, open_checkpoint
from .weights.hub_config import check_described
from .weights.hub_format import arguments_in, labels_in, levels_in, preprocessing_in
from .weights.load import families, fill, names_of, place
from .weights.source import HUB, config_of
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
    "name": "model_name",
    "img_size": "image_size",
    "input_size": "image_size",
    "dropout": "drop_rate",
    "drop_path": "drop_path_rate",
    "pool": "global_pool",
    "pool_type": "global_pool",
    "embed_dim": "dim",
    "num_heads": "heads",
    "patch_size": "patch",
    "reg_tokens": "registers",
}

# Other libraries' arguments that have no counterpart here, and what to do instead.
INSTEAD = {
    **dict.fromkeys(
        ("pretrained_cfg", "pretrained_cfg_overlay"),
        "name a tag, such as resnet50.a1_in1k, or pass checkpoint_path=; for other preprocessing set model.data_config",
    ),
    **dict.fromkeys(("scriptable", "exportable", "no_jit"), "leave it out: models are traced and exported as they are"),
    **dict.fromkeys(
        ("dynamic_img_size", "dynamic_img_pad", "strict_img_size"), "leave it out: images of every size are taken"
    ),
    "feature_cfg": "pass out_indices=, and leave the rest out",
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which maps are asked for; see `create_model`."""

    out_indices: OutIndices | None
    out_names: Sequence[str] | None
    output: Output

    def extractor(self, model: nn.Module, saved: Sequence[int] | None = None) -> FeatureExtractWrapper:
        """The extractor of these maps, or of those that were `saved` if none are chosen."""
        indices = saved if self.out_indices is None and self.out_names is None else self.out_indices
        return FeatureExtractWrapper(model, indices, out_names=self.out_names, output=self.output)


@dataclass(frozen=True, slots=True)
class Request:
    """What `create_model` was asked for.

    given: fields of the configuration that are not None. choice: None for a classifier. known: names of the arguments.
    """

    name: str
    pretrained: bool
    checkpoint: Weights | None
    given: dict[str, Any]
    choice: Choice | None
    reading: Reading
    device: torch.device | str | None
    dtype: torch.dtype | None
    known: tuple[str, ...]


def native(request: Request, variant: Variant[Any], architecture: str, published: str) -> nn.Module:
    """A model of a family, with the weights that are `published` there, those of a checkpoint, or random ones."""
    weights = _published(architecture, published) if request.pretrained else request.checkpoint
    from_folder_or_hub = published == request.name
    described = config_of(published, request.reading.cache_dir) if request.pretrained or from_folder_or_hub else {}
    known = [field.name for field in fields(variant.config)]
    stated = arguments_in(described, known, published)
    # a family without a grid of positions is built alike for all sizes
    given = {field: value for field, value in request.given.items() if field in known or field != "image_size"}
    config = _configured(architecture, variant, {**stated, **given}, request.known)
    if stated:
        check_described(variant, config, published)
    whole, checkpoint = _built(request, variant, architecture, config, weights)
    whole.data_config = preprocessing_in(described, whole.data_config, published)
    if "image_size" in request.given:
        whole.data_config = replace(whole.data_config, size=image_sides(request.given["image_size"]))
    whole.label_names, whole.tag = labels_in(described), _tag(architecture, published)
    model = request.choice.extractor(whole, levels_in(described)) if request.choice else whole
    if checkpoint is None:
        return model.to(request.device, request.dtype)
    resized = (f"{whole.last_linear}.",) if "num_classes" in request.given else ()
    grid = _grid(variant, replace(variant.config, **stated)) if request.pretrained and RESIZING & given.keys() else None
    fill(model, checkpoint, resized=resized, grid=grid, device=request.device, dtype=request.dtype)
    return model


RESIZING = {"image_size", "patch"}  # fields with which a grid of positions is not that of the weights


def _grid(variant: Variant[Any], config: Any) -> tuple[int, int] | None:
    """Rows and columns of the positions of a model of this configuration; None if it has none."""
    return getattr(_empty(variant, config), "grid", None)


def _tag(architecture: str, published: str) -> str:
    """The tag of the weights that are published there; "" if they are not timm's."""
    repository, prefix = published.partition("@")[0], f"{HUB}timm/{architecture}."
    return repository.removeprefix(prefix) if repository.startswith(prefix) else ""


def users(request: Request, create: Creation) -> nn.Module:
    """What a user's creation function returns."""
    choice: dict[str, Any] = {}
    if request.choice is not None:
        asked = {field: value for field, value in asdict(request.choice).items() if value not in (None, "list")}
        choice = {"features_only": True, **asked}
    model = _call(create, request, choice)
    place(model, request.device, request.dtype)
    if request.checkpoint is not None:
        load_weights(model, request.checkpoint, **asdict(request.reading))
    return model


def bridged(request: Request, package: ModuleType, name: str) -> nn.Module:
    """A model of another package."""
    arguments = {"in_chans": None, "num_classes": None, "output_stride": None, **request.given}
    model: nn.Module = package.build(
        name, pretrained=request.pretrained, cache_dir=request.reading.cache_dir, **arguments
    )
    if request.choice is not None:
        model = request.choice.extractor(package.pyramid(model))
    place(model, request.device, request.dtype)
    if request.checkpoint is not None:
        load_weights(model, request.checkpoint, **asdict(request.reading))
    return model


def _published(architecture: str, where: str) -> str:
    if not where:
        raise WeightsNotFoundError(
            f"{architecture} has no published weights: pass checkpoint_path= or pretrained=False"
        )
    return where


def _built(
    request: Request, variant: Variant[Any], name: str, config: Any, weights: Weights | None
) -> tuple[Backbone, Checkpoint | None]:
    """The model, empty if there are weights to fill it, and these, opened.

    It has the settings of the program that wrote the weights, unless the caller has given others.
    """
    if weights is None:
        return _named(variant.build(config), name, config, variant.data), None
    model = _empty(variant, config)
    checkpoint = open_checkpoint(weights, names_of(model), families(model), request.reading)
    layout = checkpoint.layout
    stated = {**config.stated_by(checkpoint.state.keys()), **(layout.settings if layout else {})}
    settings = {field: value for field, value in stated.items() if field not in request.given}
    if settings:
        config = replace(config, **settings)
        model = _empty(variant, config)
    data = replace(variant.data, **layout.data) if layout else variant.data
    return _named(model, name, config, data), checkpoint


def _empty(variant: Variant[Any], config: Any) -> Backbone:
    """The model without values, which takes no memory."""
    with without_values():
        return variant.build(config)


def _named(model: Backbone, name: str, config: Any, data: DataConfig) -> Backbone:
    model.architecture, model.config, model.data_config = name, config, data
    return model


def _configured(name: str, variant: Variant[Any], given: dict[str, Any], common: Sequence[str]) -> Any:
    """The variant's configuration with the given fields; ArgumentError naming every field it does not have."""
    known = [field.name for field in fields(variant.config)]
    if "output_stride" in given and "output_stride" not in known:
        raise ArgumentError(f"{name} cannot trade strides for dilation: leave output_stride out")
    _refuse_unknown(name, given, known, common)
    kinds = get_type_hints(type(variant.config))
    for field, value in given.items():
        require_kind(value, field, kinds[field])
    return replace(variant.config, **given)


def _refuse_unknown(name: str, given: Iterable[str], known: Sequence[str], common: Sequence[str]) -> None:
    arguments = [*common, *known]
    problems = []
    for word in given:
        if word not in known:
            problems.append(f"{word!r}{_advice(word, [argument for argument in arguments if argument != word])}")
    if problems:
        raise ArgumentError(f"{name} has no argument {', '.join(problems)}; its configuration has {list(known)}")


def _advice(word: str, arguments: Sequence[str]) -> str:
    """What to write in place of `word`; nothing if nothing is like it."""
    if word in INSTEAD:
        return f" ({INSTEAD[word]})"
    counterpart = NEAR_MISSES.get(word)
    close = [counterpart] if counterpart in arguments else closest(word, arguments, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _call(create: Creation, request: Request, choice: dict[str, Any]) -> nn.Module:
    """What a user's creation function returns; ArgumentError if it does not take what was given."""
    name, parameters, given = create.__name__, signature(create).parameters, request.given
    if "in_chans" in given and "in_chans" not in parameters and "in_channels" in parameters:
        given = {**given, "in_channels": given["in_chans"]}
        del given["in_chans"]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        _refuse_unknown(name, [*given, *choice], list(parameters), request.known)
    model = create(request.pretrained, **given, **choice)
    if choice and not isinstance(model, FeatureExtractWrapper):
        raise ContractError(
            f"{name} returned a {type(model).__name__} although features_only=True was asked: let it return "
            "build_model_with_cfg(Class, pretrained, **kwargs)"
        )
    return model
