"""`config.json` of a model on the Hub as timm writes it, read and written."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from ..backbone import Backbone
from ..errors import ArgumentError, CheckpointError, names_in
from ..preprocessing import TIMM_CROP_MODES, DataConfig, from_hub
from ..pretrained_cfg import first_conv, preprocessing
from ..registry import Variant, lookup
from .values import decoded, encoded, is_plain, same

# Our fields by timm's names, where these differ.
FIELDS = {"img_size": "image_size"}

# Fields that timm derives from another one unless they are stated with it.
DERIVED = {"fc_norm": "global_pool"}


def architecture_in(config: Mapping[str, Any], where: str) -> str:
    """The name of the model; CheckpointError if there is none."""
    name = config.get("architecture")
    if not isinstance(name, str):
        raise CheckpointError(
            f"config.json of {where} names no architecture, so it is not in timm's format: name the model yourself, "
            f"create_model(name, checkpoint_path={where!r})"
        )
    return name


def arguments_in(config: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """Fields of our configuration, of which there are those in `known`, as `config.json` states them.

    Raises CheckpointError if it states others.
    """
    model_args: dict[str, Any] = config.get("model_args", {})
    stated = {FIELDS.get(name, name): value for name, value in model_args.items()}
    stated |= config.get("featx", {}).get("config", {})
    if unknown := sorted(stated.keys() - set(known)):
        raise CheckpointError(f"config.json of {where} has model_args that this family lacks: [{names_in(unknown)}]")
    stated = {name: decoded(value) for name, value in stated.items()}
    return {**({"num_classes": config["num_classes"]} if "num_classes" in config else {}), **stated}


def labels_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes in the order of the logits; empty if they are not stated."""
    return tuple(config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names") or ())


def levels_in(config: Mapping[str, Any]) -> list[int] | None:
    """The levels of the extractor that was saved; None if it was a classifier."""
    return config.get("featx", {}).get("out_indices")


def preprocessing_in(config: Mapping[str, Any], default: DataConfig, where: str) -> DataConfig:
    """The preprocessing that the weights expect; `default` where it is not stated. Old files state it at the top.

    Raises CheckpointError if it states values that mean nothing, such as a crop_pct of 0.
    """
    try:
        stated = from_hub(config.get("pretrained_cfg") or config, default)
        return replace(stated, **config.get("featx", {}).get("data_config", {}))
    except ArgumentError as error:
        raise CheckpointError(f"config.json of {where} states preprocessing that cannot be: {error}") from error


def config_json(model: Backbone) -> dict[str, Any]:
    """What timm, and `create_model`, read to build the model again.

    Raises ArgumentError for a model that `create_model` has not built, or one with a field that cannot be written.
    """
    variant = lookup(model.architecture) if hasattr(model, "architecture") else None
    if not isinstance(variant, Variant):
        raise ArgumentError(f"{type(model).__name__} was not built by create_model, so nobody could build it again")
    classes = model.num_classes
    changed = _changed(model, variant)
    plain = {name: value for name, value in changed.items() if is_plain(value)}
    theirs = {ours: name for name, ours in FIELDS.items()}
    labels = {"label_names": list(model.label_names)} if len(model.label_names) == classes else {}
    return {
        "architecture": model.architecture,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": {theirs.get(name, name): value for name, value in plain.items()},
        "featx": {
            "config": {name: encoded(value) for name, value in changed.items() if name not in plain},
            "data_config": _beyond_timm(model.data_config),
        },
        **labels,
        "pretrained_cfg": {
            "custom_load": False,
            **preprocessing(model.data_config, model.in_chans),
            "num_classes": classes,
            "first_conv": first_conv(model),
            "classifier": model.last_linear,
            **labels,
        },
    }


def _changed(model: Backbone, variant: Variant[Any]) -> dict[str, Any]:
    """The fields in which the configuration differs from the variant's."""
    names = [field.name for field in fields(model.config) if field.name != "num_classes"]
    changed = [name for name in names if not same(getattr(model.config, name), getattr(variant.config, name))]
    changed += [name for name in names if DERIVED.get(name) in changed and name not in changed]
    return {name: getattr(model.config, name) for name in changed}


def _beyond_timm(data: DataConfig) -> dict[str, Any]:
    """The fields of the preprocessing that timm's file cannot state."""
    own = {"channel_order": data.channel_order, "crop_rounding": data.crop_rounding}
    return own if data.crop_mode in TIMM_CROP_MODES else {**own, "crop_mode": data.crop_mode}
