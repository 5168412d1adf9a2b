"""Read and write `config.json` in the format of timm models on the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from ..backbone import Backbone
from ..errors import ArgumentError, CheckpointError, names_in
from ..preprocessing import TIMM_CROP_MODES, DataConfig, from_hub
from ..pretrained_cfg import first_conv, preprocessing
from ..registry import Variant, lookup
from .config_codec import decode_value, encode_value, is_plain, same_value

# timm's names of our configuration fields, where they differ.
FIELDS = {"img_size": "image_size"}

# Fields whose default timm derives from another field, so that both are written.
DERIVED = {"fc_norm": "global_pool"}


def architecture_in(config: Mapping[str, Any], where: str) -> str:
    """The model name; CheckpointError if the file does not state it."""
    name = config.get("architecture")
    if not isinstance(name, str):
        raise CheckpointError(
            f"config.json of {where} names no architecture, so it is not in timm's format: name the model yourself, "
            f"create_model(name, checkpoint_path={where!r})"
        )
    return name


def arguments_in(config: Mapping[str, Any], known: Collection[str], where: str) -> dict[str, Any]:
    """The configuration fields that `config.json` states, as arguments of `create_model`.

    Args:
        config: the parsed file.
        known: fields of the family's configuration.
        where: the folder or repository of the file, for the message.

    Raises:
        CheckpointError: the file states a field that is not `known`.
    """
    model_args: dict[str, Any] = config.get("model_args", {})
    stated = {FIELDS.get(name, name): value for name, value in model_args.items()}
    stated |= config.get("featx", {}).get("config", {})
    if unknown := sorted(stated.keys() - set(known)):
        raise CheckpointError(f"config.json of {where} has model_args that this family lacks: [{names_in(unknown)}]")
    stated = {name: decode_value(value) for name, value in stated.items()}
    return {**({"num_classes": config["num_classes"]} if "num_classes" in config else {}), **stated}


def labels_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names in the order of the logits; empty if the file has none."""
    return tuple(config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names") or ())


def levels_in(config: Mapping[str, Any]) -> list[int] | None:
    """`out_indices` of a saved extractor; None for a classifier."""
    return config.get("featx", {}).get("out_indices")


def preprocessing_in(config: Mapping[str, Any], default: DataConfig, where: str) -> DataConfig:
    """The preprocessing that the weights expect, with `default` for fields that the file does not state.

    Old files state it at the top level instead of in `pretrained_cfg`.

    Raises:
        CheckpointError: a value is invalid, such as a crop_pct of 0.
    """
    try:
        stated = from_hub(config.get("pretrained_cfg") or config, default)
        return replace(stated, **config.get("featx", {}).get("data_config", {}))
    except ArgumentError as error:
        raise CheckpointError(f"config.json of {where} states invalid preprocessing: {error}") from error


def config_json(model: Backbone) -> dict[str, Any]:
    """The content of a `config.json` from which `create_model` and timm can rebuild the model.

    Raises:
        ArgumentError: the model was not built by `create_model`, or a field has no JSON encoding.
    """
    variant = lookup(model.architecture) if hasattr(model, "architecture") else None
    if not isinstance(variant, Variant):
        raise ArgumentError(
            f"{type(model).__name__} was not built by create_model, so create_model could not rebuild it"
        )
    classes = model.num_classes
    changed = _changed(model, variant)
    plain = {name: value for name, value in changed.items() if is_plain(value)}
    timm_names = {native: name for name, native in FIELDS.items()}
    labels = {"label_names": list(model.label_names)} if len(model.label_names) == classes else {}
    return {
        "architecture": model.architecture,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": {timm_names.get(name, name): value for name, value in plain.items()},
        "featx": {
            "config": {name: encode_value(value) for name, value in changed.items() if name not in plain},
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
    """The configuration fields that differ from those of the variant."""
    names = [field.name for field in fields(model.config) if field.name != "num_classes"]
    changed = [name for name in names if not same_value(getattr(model.config, name), getattr(variant.config, name))]
    changed += [name for name in names if DERIVED.get(name) in changed and name not in changed]
    return {name: getattr(model.config, name) for name in changed}


def _beyond_timm(data: DataConfig) -> dict[str, Any]:
    """The preprocessing fields that timm's format lacks."""
    extra = {"channel_order": data.channel_order, "crop_rounding": data.crop_rounding}
    return extra if data.crop_mode in TIMM_CROP_MODES else {**extra, "crop_mode": data.crop_mode}
