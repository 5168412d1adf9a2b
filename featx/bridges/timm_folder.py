"""The architecture and the arguments of timm that a `config.json` describes, which is untrusted."""

from collections.abc import Mapping
from typing import Any

from ..preprocessing import DataConfig
from ..weights.hub_config import (
    CLASSES,
    LARGEST_NUMBER,
    MOST_ITEMS,
    PREPROCESSING,
    WORD,
    JsonType,
    plain_arguments,
    require_json_types,
)
from ..weights.hub_format import architecture_in, preprocessing_in


def _are_names(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return len(names) <= MOST_ITEMS and all(map(WORD.matches, names))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_input_size(value: Any) -> bool:
    channels = value[0] if isinstance(value, list) and len(value) == 3 else 3
    return PREPROCESSING["input_size"].matches(value) and type(channels) is int and 0 < channels <= LARGEST_NUMBER


NAMES = JsonType("a word or a list of words", _are_names)
# The entries of `pretrained_cfg` that timm builds a model with. Others, such as `file` and `url`, are left out.
PRETRAINED_CFG = {
    **PREPROCESSING,
    "input_size": JsonType(PREPROCESSING["input_size"].description, _is_input_size),
    "num_classes": CLASSES,
    "first_conv": NAMES,
    "classifier": NAMES,
    "fixed_input_size": JsonType("true or false", _is_flag),
}


def described_by(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The architecture, the arguments of its class, and its `pretrained_cfg`.

    Args:
        config: the parsed file, whose fields have the types that `checked_config` requires.
        where: the folder or repository of the file, for the message.

    Raises:
        CheckpointError: the file names no architecture, or an argument is not a plain value of the size of a network's.
    """
    model_args = plain_arguments(config.get("model_args", {}), where)
    return architecture_in(config, where), model_args, _pretrained_cfg(config, where)


def _pretrained_cfg(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries for timm, which old files state at the top level."""
    stated: Mapping[str, Any] = config.get("pretrained_cfg") or config
    require_json_types(stated, PRETRAINED_CFG, f"config.json of {where}")
    preprocessing_in(config, DataConfig(), where)
    entries = {name: stated[name] for name in PRETRAINED_CFG if stated.get(name) is not None}
    if "input_size" in entries:
        *channels, height, width = entries["input_size"]
        entries["input_size"] = (*(channels or [3]), height, width)
    return {**entries, **({"num_classes": config["num_classes"]} if "num_classes" in config else {})}
