"""Validate an untrusted `config.json` in timm's format: JSON types, limits, and whether its model can be built.

Size, nesting and types are checked when the file is read. The configuration is checked by building the model on the
meta device within limits.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from math import isfinite
from pathlib import Path
from reprlib import Repr
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..errors import CheckpointError, FeatxError, in_short, names_in, shortened
from ..meta_init import init_empty_weights
from ..registry import Variant
from ..tracing.meta_kernels import MetaKernels
from .config_codec import is_plain

TIMM_WRAPPER, HEADLESS = "timm_wrapper", "TimmWrapperModel"  # transformers' model type, and its class without classes
LARGEST_FILE = 8 << 20  # bytes; the names and descriptions of 21,843 classes take three million
DEEPEST = 32  # nested objects and lists
LARGEST_SIDE = 4096  # pixels of an image
MOST_CLASSES = 1 << 24
LONGEST_WORD = 200  # characters
LARGEST_NUMBER = 1 << 16  # of an argument of another package's model
MOST_ITEMS = 64  # of a list
MOST_MODULES = 20_000  # per network; the largest network of featx has four thousand
ALWAYS_ALLOWED = 512 << 20  # bytes of tensors
MOST_GROWTH = 4  # ratio of tensor bytes to those of the published variant
ALWAYS_ACCEPTED = {"num_classes": 100_000, "in_chans": 100}  # largest values that every model supports
# Exceptions of layers that are constructed with incompatible arguments.
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class JsonType(NamedTuple):
    """An expected type of a JSON value: its description for messages, and a predicate."""

    description: str
    matches: Callable[[Any], bool]


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) in (int, float) and isfinite(item) for item in value)


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_size(value: Any) -> bool:
    """Whether the value is [channels, height, width] or [height, width] in pixels; the channels are not checked."""
    pixels = value[-2:] if isinstance(value, list) and len(value) in (2, 3) else [0]
    return all(type(side) is int and 0 < side <= LARGEST_SIDE for side in pixels)


def _in_range(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


OBJECT = JsonType("an object", lambda value: isinstance(value, dict))
WORD = JsonType("a word", lambda value: isinstance(value, str) and len(value) <= LONGEST_WORD and value.isprintable())
TEXTS = JsonType("a list of texts", _is_strings)
CLASSES = JsonType(f"a number from 0 to {MOST_CLASSES}", _in_range(0, MOST_CLASSES))
LEVELS = JsonType(
    "a list of positions", lambda value: isinstance(value, list) and all(map(_in_range(-DEEPEST, DEEPEST), value))
)
NUMBERS = JsonType("a list of numbers", _is_numbers)

# The fields that are read; null is allowed where timm writes it.
CONFIG = {
    "architecture": WORD,
    "pretrained_cfg": OBJECT,
    "model_args": OBJECT,
    "featx": OBJECT,
    "num_classes": CLASSES,
    "label_names": TEXTS,
}
PREPROCESSING = {
    "input_size": JsonType(f"a list of channels and two sides of at most {LARGEST_SIDE} pixels", _is_size),
    "mean": NUMBERS,
    "std": NUMBERS,
    "interpolation": WORD,
    "crop_pct": JsonType("a number", lambda value: _is_numbers([value])),
    "crop_mode": WORD,
    "label_names": TEXTS,
}
FEATX = {"config": OBJECT, "data_config": OBJECT, "out_indices": LEVELS, "package": WORD, "arguments": OBJECT}
DATA: dict[str, JsonType] = dict.fromkeys(("channel_order", "crop_rounding", "crop_mode"), WORD)


def checked_config(path: Path, whose: str = "") -> dict[str, Any]:
    """The JSON object of a `config.json`; CheckpointError if it is not an object or a field has the wrong type."""
    config = read_json(path, whose)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}{whose}: expected a JSON object, got a {type(config).__name__}")
    if config.get("model_type") == TIMM_WRAPPER:
        config = _in_timms_format(config)
    _require(_problems(config), f"{path}{whose}")
    return config


def _in_timms_format(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of transformers' file of a timm model: null is a default, and TimmWrapperModel has no classifier."""
    stated = {name: value for name, value in config.items() if value is not None}
    if config.get("architectures") == [HEADLESS]:
        stated = {**stated, "num_classes": 0}
        stated.pop("label_names", None)
    return stated


def require_json_types(value: Any, types: Mapping[str, JsonType], where: str) -> None:
    """Raise CheckpointError unless the value is an object whose fields, if present and not null, have these types."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    _require(_mismatches("", value, types), where)


def _require(problems: Iterator[tuple[str, str]], where: str) -> None:
    if mismatches := list(problems):
        expected, got = zip(*mismatches, strict=True)
        raise CheckpointError(
            f"{where}: expected a JSON object in which {', '.join(shortened(expected))}; got "
            f"{{{', '.join(shortened(got))}}}"
        )


def read_json(path: Path, whose: str = "") -> Any:
    """Parse a small JSON file; CheckpointError if it is not JSON, too large or nested too deeply."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise CheckpointError(f"{path}{whose} has {size} bytes: expected a file in JSON of at most {LARGEST_FILE}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}{whose} is not JSON: {in_short(error)}") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _children(outer)]
    if level:
        raise CheckpointError(f"{path}{whose} nests values more than {DEEPEST} deep: expected a plain description")
    return value


def _children(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)


def _problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For each field of the wrong type: the expected type, and the name with its value, for a message."""
    yield from _mismatches("", config, CONFIG, nullable=False)
    stated = config.get("pretrained_cfg") or config
    if isinstance(stated, dict):
        yield from _mismatches("" if stated is config else "pretrained_cfg.", stated, PREPROCESSING)
    featx = config.get("featx")
    if isinstance(featx, dict):
        yield from _mismatches("featx.", featx, FEATX, nullable=False)
        if isinstance(data := featx.get("data_config"), dict):
            yield from _mismatches("featx.data_config.", data, DATA, nullable=False)
            for name in sorted(data.keys() - DATA.keys()):
                yield f"featx.data_config has {', '.join(DATA)} alone", f"{brief(name)}"


def _mismatches(
    where: str, config: Mapping[str, Any], types: Mapping[str, JsonType], nullable: bool = True
) -> Iterator[tuple[str, str]]:
    for name, expected in types.items():
        absent = name not in config or (nullable and config[name] is None)
        if not absent and not expected.matches(config[name]):
            yield f"{where}{name} is {expected.description}", f"{where + name!r}: {brief(config[name])}"


def brief(value: Any) -> str:
    """An untrusted value for a message, abbreviated to at most a line."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxdict = short.maxlist = 4
    short.maxlevel = 2
    return short.repr(value)


def require_buildable(variant: Variant[Any], config: Any, where: str) -> None:
    """Raise CheckpointError unless the model of a configuration can be built on the meta device and run within limits.

    A configuration equal to that of the variant is not checked. The model is run, which imports PyTorch's meta kernels,
    only if classes or functions differ from those of the variant.

    Args:
        variant: the published variant.
        config: its configuration, as changed by the file.
        where: the folder or repository of the file, for the message.
    """
    changed = {name: getattr(config, name) for name in _changed(variant.config, config)}
    if not changed:
        return

    def build() -> nn.Module:
        model = variant.build(config).eval()
        _require_values(model)
        if not all(map(is_plain, changed.values())):
            with torch.no_grad(), MetaKernels():
                model(torch.empty(1, config.in_chans, *variant.data.size, device="meta"))
        return model

    require_limits(build, partial(variant.build, variant.config), where)


def require_limits(build: Callable[[], nn.Module], published: Callable[[], nn.Module], where: str) -> None:
    """Raise CheckpointError unless `build` succeeds on the meta device, with at most MOST_GROWTH times the bytes.

    Args:
        build: builds the model that a file describes, and may run it.
        published: builds the published model of the same architecture.
        where: the folder or repository of the file, for the message.
    """
    try:
        with warnings.catch_warnings(), init_empty_weights(), _limited_modules():
            warnings.simplefilter("ignore")  # PyTorch warns of layers that are refused below
            model = build()
            _require_values(model)
    except FeatxError as error:
        raise CheckpointError(f"config.json of {where} describes an invalid model: {error}") from error
    except BUILD_ERRORS as error:
        raise CheckpointError(
            f"config.json of {where} describes a model that cannot be built or run ({in_short(error)}): expected the "
            "fields of the family in model_args and featx.config"
        ) from error
    if (size := _bytes_of(model)) > ALWAYS_ALLOWED and size > MOST_GROWTH * _bytes_of(_empty(published)):
        raise CheckpointError(
            f"config.json of {where} describes a model of {size} bytes, more than {MOST_GROWTH} times those of the "
            "published one: pass its fields to create_model yourself if you want it"
        )


def _changed(published: Any, config: Any) -> list[str]:
    """Names of the fields that differ, except class and channel counts that every model supports."""
    names = [field.name for field in fields(config)]
    return [
        name
        for name in names
        if (value := getattr(config, name)) != getattr(published, name)
        if name not in ALWAYS_ACCEPTED or not isinstance(value, int) or value > ALWAYS_ACCEPTED[name]
    ]


def _require_values(model: nn.Module) -> None:
    empty = [name for name, tensor in model.state_dict().items() if not tensor.numel()]
    if empty:
        raise ValueError(f"it has layers without channels: {names_in(empty)}")


def _empty(build: Callable[[], nn.Module]) -> nn.Module:
    with init_empty_weights():
        return build()


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@contextmanager
def _limited_modules() -> Iterator[None]:
    """Within the context, raise ValueError if this thread registers more than MOST_MODULES modules."""
    registered, thread = 0, get_ident()

    def count(_parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal registered
        registered += get_ident() == thread
        if registered > MOST_MODULES:
            raise ValueError(f"it has more than {MOST_MODULES} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def plain_arguments(stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The arguments of another package's model in a `config.json`, without nulls.

    Raises:
        CheckpointError: an argument is not a flag, a word, a number of a network's size, or a short list of these.
    """
    arguments = {name: value for name, value in stated.items() if value is not None}
    if wrong := [f"{name}={brief(value)}" for name, value in arguments.items() if not _is_argument(value)]:
        raise CheckpointError(
            f"config.json of {where} has model_args that are not the numbers and words of a network: "
            f"{', '.join(shortened(wrong))}"
        )
    return arguments


def _is_argument(value: Any, deep: int = 2) -> bool:
    """Whether the value is a flag, a word, a number of at most LARGEST_NUMBER, or a short list of these."""
    if isinstance(value, list):
        return deep > 0 and len(value) <= MOST_ITEMS and all(_is_argument(item, deep - 1) for item in value)
    if isinstance(value, bool) or WORD.matches(value):
        return True
    return isinstance(value, int | float) and abs(value) <= LARGEST_NUMBER  # false for NaN
