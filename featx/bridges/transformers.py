"""Bridge to transformers (https://huggingface.co/docs/transformers): its backbones and its other image encoders.

A name is a model type ("convnext": the default configuration, random weights), a repository on the Hub
("facebook/convnext-tiny-224", also with "@revision") or a folder with a config.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path
from typing import Any

from torch import float32, nn

from ..errors import ArgumentError, UnknownModelError, WeightsNotFoundError
from ..spelling import closest
from ..tracing.third_party_errors import ThirdPartyError, third_party
from .bridged_pyramid import BridgedPyramid
from .plain_checkpoint import load as load
from .transformers_levels import as_pyramid
from .transformers_preprocessing import data_config

# Image encoders without a Backbone class, whose maps are hidden states.
ENCODERS = (
    *("aimv2_vision_model", "chinese_clip_vision_model", "clip_vision_model", "cvt", "data2vec-vision", "deit"),
    *("donut-swin", "dpt", "efficientnet", "glpn", "ijepa", "internvl_vision", "levit", "mlcd_vision_model"),
    *("mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "regnet", "sam_vision_model"),
    *("segformer", "siglip_vision_model", "swiftformer", "vit", "vit_mae", "vit_msn"),
    *("blip_vision_model", "metaclip_2_vision_model", "sam2_hiera_det_model", "sam_hq_vision_model"),
    *("qianfan_ocr_vision", "radio", "sam2_vision_model", "sam3_vision_model", "sam3_vit_model"),
)

# Models that contain an image encoder, such as models of images and text. Its configuration is their `vision_config`.
TOWERS = ("clip", "blip", "siglip", "chinese_clip", "metaclip_2", "aimv2", "tipsv2", "sam", "sam_hq", "internvl")

# Encoders that AutoModel does not list.
CLASSES = {"blip_vision_model": "BlipVisionModel", "metaclip_2_vision_model": "MetaClip2VisionModel"}

# Model types that cannot return maps, with the reason.
REFUSED = {
    "dinat": "its attention needs the package natten, which this version of transformers does not find",
    "pp_lcnet_v4": "its default cells, for lines of text, are not square",
    "timm_backbone": "it is a model of timm: use timm/<name>",
    "timm_wrapper": "it is a model of timm: use timm/<name>",
    "imagegpt": "it reads color clusters, not images",
    "perceiver": "its latents have no positions in the image",
    "yolos": "detection tokens follow its patches, so that its tokens are not prefix tokens and a grid",
    "siglip2_vision_model": "it reads patches cut beforehand, not images",
    "videomae": "it reads videos",
    "timesformer": "it reads videos",
    "vivit": "it reads videos",
}

# Parts of keys of parameters that may be missing in a checkpoint, because it is of another model class or other labels.
OPTIONAL = ("classifier", "head", "hidden_states_norms", "mask_token", "pooler")


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a configuration: a repository or folder and its revision; "" for a model type."""

    where: str = ""
    revision: str = "main"


def names() -> list[str]:
    """The model types that return maps; each stands for its default configuration."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    types = {*MODEL_FOR_BACKBONE_MAPPING_NAMES, *ENCODERS} - {*REFUSED, *TOWERS}
    return sorted(name for name in types if name in CONFIG_MAPPING)


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
    """The package's backbone with all its stages, or its encoder; with `num_classes`, its image classifier.

    Args:
        name: model type, repository (with "@revision") or folder.
        pretrained: load the weights of the repository or folder.
        in_chans: channels of the images.
        num_classes: number of classes, for a classifier.
        output_stride: the field of the configuration.
        cache_dir: folder for downloads.
        arch: fields of the configuration.

    Raises:
        UnknownModelError: there is no such model, or it returns no maps.
        ArgumentError: a field is unknown or invalid, or the weights do not fit.
        WeightsNotFoundError: the configuration or the weights do not exist or cannot be downloaded.
    """
    origin, config = _config(name, cache_dir)
    fields = {"num_channels": in_chans, "output_stride": output_stride, "num_labels": num_classes or None, **arch}
    config = configured(name, config, {field: value for field, value in fields.items() if value is not None})
    cls = _class(config, classifier=bool(num_classes))
    if not pretrained:
        model: Any = cls(config)
    elif origin.where:
        model = _load(cls, origin, config, cache_dir)
    else:
        raise WeightsNotFoundError(
            f"transformers/{name} is a model type, which has no weights: name a repository on the Hub, such as "
            f"transformers/owner/{name}-..., or a folder, or pass pretrained=False"
        )
    model.data_config = data_config(origin.where, config, cache_dir, origin.revision)
    return model


def restore(config: Mapping[str, Any], where: str, **arch: Any) -> nn.Module:
    """Raises UnknownModelError: a `config.json` in timm's format does not describe models of this package."""
    del config, arch
    raise UnknownModelError(
        f"{where} is not a name of transformers: for a folder in timm's format, ask for {where!r} alone"
    )


def describe(model: nn.Module) -> dict[str, Any]:
    """Raises ArgumentError: the package saves its models itself."""
    raise ArgumentError(
        f"{type(model).__name__} is of transformers, which saves its models itself: save the model, not its extractor, "
        "with model.save_pretrained(folder), and load it with create_model('transformers/<folder>')"
    )


def pyramid(model: nn.Module) -> BridgedPyramid:
    """A Pyramid of a model of transformers. ContractError if the model has no image backbone or encoder."""
    return as_pyramid(model)


def _config(name: str, cache_dir: str | Path | None) -> tuple[Origin, Any]:
    """The configuration that a name stands for, and its origin."""
    from transformers import CONFIG_MAPPING

    if name in REFUSED:
        raise UnknownModelError(f"transformers/{name} returns no maps: {REFUSED[name]}")
    if name in CONFIG_MAPPING and not isdir(name):
        config = CONFIG_MAPPING[name]()
        return Origin(), _image_part(name, config)
    if "/" not in name and not isdir(name):
        close = closest(name, names(), 3)
        raise UnknownModelError(
            f"transformers has no model type {name!r}" + (f", but {close}" if close else "") + "; for weights, name a "
            "repository (transformers/owner/repo) or a folder"
        )
    where, _, revision = (name, "", "") if isdir(name) else name.partition("@")
    origin = Origin(where, revision or "main")
    return origin, _image_part(name, _read_config(origin, cache_dir))


def _read_config(origin: Origin, cache_dir: str | Path | None) -> Any:
    from transformers import AutoConfig

    if isdir(origin.where) and not (Path(origin.where) / "config.json").is_file():
        raise WeightsNotFoundError(
            f"the folder {origin.where} has no config.json, which says what the model is: name a folder that "
            "save_pretrained wrote"
        )
    try:
        return AutoConfig.from_pretrained(origin.where, cache_dir=cache_dir, revision=origin.revision)
    except OSError as error:
        raise _not_found(origin, "config.json", error) from error
    except ValueError as error:
        raise UnknownModelError(f"transformers cannot read the config.json of {origin.where}: {error}") from error


def _image_part(name: str, config: Any) -> Any:
    """The configuration of the image encoder. UnknownModelError if the type returns no maps."""
    config = config.vision_config if config.model_type in TOWERS else config
    model_type = config.model_type
    if model_type in REFUSED:
        raise UnknownModelError(f"transformers/{name} returns no maps: {REFUSED[model_type]}")
    if model_type not in names():
        close = closest(model_type, names(), 3)
        raise UnknownModelError(
            f"transformers/{name} is of type {model_type!r}, which returns no maps; these do: {close or names()}"
        )
    return config


def configured(name: str, config: Any, fields: Mapping[str, Any]) -> Any:
    """The configuration with other values of fields, as if a config.json contained them.

    Raises:
        ArgumentError: a field is unknown (the message lists all), or a value is invalid.
    """
    from huggingface_hub.errors import StrictDataclassError

    values, defaults = (json.loads(each.to_json_string(use_diff=False)) for each in (config, type(config)()))
    known = {*values, *config.attribute_map, "num_labels"} - {"transformers_version", "architectures", "model_type"}
    unknown = [field for field in fields if field not in known]
    if "output_stride" in unknown:
        raise ArgumentError(f"transformers/{name} cannot trade strides for dilation: leave output_stride out")
    if unknown:
        close = {field: closest(field, sorted(known), 3) for field in unknown}
        hints = ", ".join(f"{field!r}" + (f" (did you mean {near}?)" if near else "") for field, near in close.items())
        raise ArgumentError(f"the configuration of transformers/{name} has no field {hints}; it has {sorted(known)}")
    derived = {"stage_names", "out_features", "out_indices", "id2label", "label2id"}
    changed = {key: value for key, value in values.items() if value != defaults.get(key) and key not in derived}
    try:
        result = third_party(type(config).from_dict, {**changed, **fields})
    except (ThirdPartyError, StrictDataclassError) as error:
        raise ArgumentError(f"transformers/{name} does not accept this configuration: {error}") from error
    for field, value in vars(result).items():
        if isinstance(value, tuple):
            setattr(result, field, list(value))  # as in JSON, because some classes concatenate it with a list
    if getattr(result, "stage_names", None) and hasattr(result, "_out_features"):
        first = 1 if result.model_type == "maskformer-swin" else 0  # which has no norm for the stem
        result.out_features = list(result.stage_names)[first:]
    return result


def _class(config: Any, *, classifier: bool) -> Any:
    """The package's model class for a configuration."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_BACKBONE_MAPPING,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_MAPPING,
    )

    if classifier and type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ArgumentError(f"transformers has no classifier of type {config.model_type}: leave num_classes out")
    if config.model_type in CLASSES:
        return getattr(transformers, CLASSES[config.model_type])
    plain = MODEL_FOR_BACKBONE_MAPPING if type(config) in MODEL_FOR_BACKBONE_MAPPING else MODEL_MAPPING
    classes = (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING if classifier else plain)[type(config)]
    return classes[0] if isinstance(classes, tuple) else classes


def _load(cls: Any, origin: Origin, config: Any, cache_dir: str | Path | None) -> Any:
    """The model with the weights of a repository or folder, in float32.

    Raises:
        ArgumentError: tensors are missing or have other shapes, except optional ones.
        WeightsNotFoundError: there are no weights.
    """
    try:
        model, loading = cls.from_pretrained(
            origin.where,
            config=config,
            cache_dir=cache_dir,
            revision=origin.revision,
            dtype=float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise _not_found(origin, "weights", error) from error
    mismatched, missing = (
        [key for key in map(str, loading[kind]) if not any(part in key for part in OPTIONAL)]
        for kind in ("mismatched_keys", "missing_keys")
    )
    if mismatched or missing:
        raise ArgumentError(f"the weights of {origin.where} do not fit: other shapes {mismatched}, missing {missing}")
    return model


def _not_found(origin: Origin, what: str, error: Exception) -> WeightsNotFoundError:
    first, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsNotFoundError(
        f"cannot load the {what} of {origin.where} ({first}): check the name, connect, set HF_ENDPOINT to a mirror or "
        "HF_TOKEN for a private repository, or name a folder that save_pretrained wrote"
    )
