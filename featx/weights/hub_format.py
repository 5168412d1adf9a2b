"""Read and write `config.json` in the format of timm models on the Hub."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from operator import not_
from typing import Any, NamedTuple

from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, CheckpointError, names_in, shortened
from ..models.layers.transformer import TANH_GELU, GatedMlp, Mlp, QuickGELU
from ..models.vit import ViTConfig
from ..preprocessing import TIMM_CROP_MODES, DataConfig, from_hub
from ..pretrained_cfg import first_conv, preprocessing
from ..registry import Variant, lookup
from .config_codec import decode_value, encode_value, is_plain, same_value


def _unchanged(value: Any) -> Any:
    return value


def _sides(value: Any) -> Any:
    """One side if both are equal, as images and patches of our configurations have it."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


class Field(NamedTuple):
    """A configuration field of ours that an argument of timm stands for.

    path: the field, or "style.field" for a field of a ViT's style; "" for the same name. convert: the function from
    timm's value to ours, which raises LookupError, TypeError or ValueError for a value that has no counterpart.
    """

    path: str = ""
    convert: Callable[[Any], Any] = _unchanged


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": TANH_GELU,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}
MLPS: dict[str, type[nn.Module]] = {"Mlp": Mlp, "SwiGLUPacked": GatedMlp}
# Arguments of timm's ViTs whose names differ from ours.
VIT_FIELDS = {
    "img_size": Field("image_size", _sides),
    "patch_size": Field("patch", _sides),
    "embed_dim": Field("dim"),
    "num_heads": Field("heads"),
    "reg_tokens": Field("registers"),
    "no_embed_class": Field("prefix_positions", not_),
    "init_values": Field("style.layer_scale", lambda value: float(value or 0)),
    "qkv_bias": Field("style.qkv_bias", bool),
    "mlp_layer": Field("style.mlp", MLPS.__getitem__),
    "act_layer": Field("style.act", ACTIVATIONS.__getitem__),
}
# timm's names of fields whose values are written unchanged.
TIMM_NAMES = {"image_size": "img_size"}
# Arguments that say which sizes of images timm's ViTs accept. Ours accept all.
SIZE_ARGUMENTS = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size")

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


def arguments_in(config: Mapping[str, Any], published: Any, where: str) -> dict[str, Any]:
    """The configuration fields that `config.json` states, as arguments of `create_model`.

    Args:
        config: the parsed file.
        published: configuration of the variant.
        where: the folder or repository of the file, for the message.

    Raises:
        CheckpointError: the file states a field that the configuration does not have.
    """
    stated, unknown = _translated(config.get("model_args", {}), published)
    own: dict[str, Any] = config.get("featx", {}).get("config", {})
    known = {field.name for field in fields(published)}
    if unknown := sorted({*unknown, *(own.keys() - known)}):
        raise CheckpointError(f"config.json of {where} has {lacking(unknown)}")
    stated = {name: decode_value(value) for name, value in {**stated, **own}.items()}
    return {**({"num_classes": config["num_classes"]} if "num_classes" in config else {}), **stated}


def is_native(config: Mapping[str, Any], published: Any) -> bool:
    """Whether our configuration has a field for each argument of timm that `config.json` states."""
    return not _translated(config.get("model_args", {}), published)[1]


def lacking(names: Iterable[str]) -> str:
    """The end of a sentence on arguments in a `config.json` that no model of that architecture has."""
    return f"model_args that this family lacks: [{names_in(names)}]"


def _translated(model_args: Mapping[str, Any], published: Any) -> tuple[dict[str, Any], list[str]]:
    """The fields that timm's arguments stand for, and the arguments that have no counterpart."""
    table = dict.fromkeys((field.name for field in fields(published)), Field())
    table |= VIT_FIELDS if isinstance(published, ViTConfig) else {}
    stated, unknown = dict[str, Any](), list[str]()
    for name, value in model_args.items():
        if value is None or (name in SIZE_ARGUMENTS and isinstance(published, ViTConfig)):
            continue  # timm leaves out arguments that are None
        try:
            path, converted = table[name].path or name, table[name].convert(value)
        except (LookupError, TypeError, ValueError):
            unknown.append(name)
            continue
        field, _, inner = path.partition(".")
        whole = stated.get(field, getattr(published, field))
        stated[field] = replace(whole, **{inner: converted}) if inner else converted
    return stated, unknown


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
    labels = {"label_names": list(model.label_names)} if len(model.label_names) == classes else {}
    return {
        "architecture": model.architecture,
        "num_classes": classes,
        "num_features": model.num_features,
        "model_args": dict(_timm_argument(name, value, variant.config) for name, value in changed.items()),
        "featx": {"data_config": _beyond_timm(model.data_config)},
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


def _timm_argument(name: str, value: Any, published: Any) -> tuple[str, Any]:
    """timm's argument for a changed field. timm refuses a name that its class lacks, so that no setting is ignored."""
    if name == "style" and isinstance(published, ViTConfig):
        same = (act for act in ACTIVATIONS if same_value(replace(published.style, act=ACTIVATIONS[act]), value))
        if act := next(same, None):
            return "act_layer", act
    return TIMM_NAMES.get(name, name), encode_value(value)


def _beyond_timm(data: DataConfig) -> dict[str, Any]:
    """The preprocessing fields that timm's format lacks."""
    extra = {"channel_order": data.channel_order, "crop_rounding": data.crop_rounding}
    return extra if data.crop_mode in TIMM_CROP_MODES else {**extra, "crop_mode": data.crop_mode}


CREATED = "created"  # attribute of a model: how create_model built it


class Created(NamedTuple):
    """The name of a registered function, and the arguments that it was called with."""

    name: str
    arguments: dict[str, Any]


def require_plain(arguments: Mapping[str, Any], name: str) -> None:
    """Raise ArgumentError unless JSON can represent all arguments."""
    if wrong := [f"{key}={value!r}" for key, value in arguments.items() if not is_plain(value)]:
        raise ArgumentError(
            f"{name} was created with arguments that a config.json cannot hold ({', '.join(shortened(wrong))}): save "
            "its state_dict() instead"
        )


def preprocessing_of(model: Any) -> dict[str, Any]:
    """`pretrained_cfg` of a model that is not native, with its preprocessing and labels; empty without a DataConfig."""
    data, labels = getattr(model, "data_config", None), getattr(model, "label_names", ())
    stated = {"label_names": list(labels)} if labels else {}
    if isinstance(data, DataConfig):
        stated |= preprocessing(data, len(data.mean))
    return {"pretrained_cfg": stated} if stated else {}
