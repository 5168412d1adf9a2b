"""`config.json` of a model in timm's format, which anybody may have written: its types, and the model it describes.

It is read within limits, and its types are checked. Whether the configuration that it states can be built is tried
without values and within limits.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from math import isfinite
from pathlib import Path
from reprlib import Repr
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..backbone import Backbone
from ..empty import without_values
from ..errors import CheckpointError, FeatxError, in_short, names_in, shortened
from ..registry import Variant
from ..tracing.meta_kernels import Shortcuts
from .values import is_plain

LARGEST_FILE = 8 << 20  # bytes; the names of 21,843 classes, described, take three million
DEEPEST = 32  # objects and lists inside each other
LARGEST_SIDE = 4096  # pixels of an image
MOST_CLASSES = 1 << 24
LONGEST_WORD = 200  # characters
MOST_MODULES = 20_000  # of a network; the largest here has four thousand
ALWAYS_ALLOWED = 512 << 20  # bytes of tensors
MOST_GROWTH = 4  # bytes of tensors over those of the published variant
FREE = {"num_classes": 100_000, "in_chans": 100}  # up to so many, every model can have them
# What layers raise that are made with numbers, or classes, that do not go together.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Kind(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    fits: Callable[[Any], bool]


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) in (int, float) and isfinite(one) for one in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _sides(value: Any) -> bool:
    """[channels, height, width]; the channels are not read."""
    pixels = value[-2:] if isinstance(value, list) and len(value) in (2, 3) else [0]
    return all(type(side) is int and 0 < side <= LARGEST_SIDE for side in pixels)


def _counts(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


OBJECT = Kind("an object", lambda value: isinstance(value, dict))
WORD = Kind("a word", lambda value: isinstance(value, str) and len(value) <= LONGEST_WORD and value.isprintable())
TEXTS = Kind("a list of texts", _texts)
CLASSES = Kind(f"a number from 0 to {MOST_CLASSES}", _counts(0, MOST_CLASSES))
LEVELS = Kind(
    "a list of positions", lambda value: isinstance(value, list) and all(map(_counts(-DEEPEST, DEEPEST), value))
)
NUMBERS = Kind("a list of numbers", _numbers)

# What we read of a file; null is allowed where timm writes it.
CONFIG = {
    "architecture": WORD,
    "pretrained_cfg": OBJECT,
    "model_args": OBJECT,
    "featx": OBJECT,
    "num_classes": CLASSES,
    "label_names": TEXTS,
}
PREPROCESSING = {
    "input_size": Kind(f"a list of channels and two sides of at most {LARGEST_SIDE} pixels", _sides),
    "mean": NUMBERS,
    "std": NUMBERS,
    "interpolation": WORD,
    "crop_pct": Kind("a number", lambda value: _numbers([value])),
    "crop_mode": WORD,
    "label_names": TEXTS,
}
FEATX = {"config": OBJECT, "data_config": OBJECT, "out_indices": LEVELS}
DATA: dict[str, Kind] = dict.fromkeys(("channel_order", "crop_rounding", "crop_mode"), WORD)


def checked_config(path: Path, whose: str = "") -> dict[str, Any]:
    """The JSON object in a `config.json`; CheckpointError if it is none, or what is read of it is of another type."""
    config = read_json(path, whose)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}{whose}: expected a JSON object, got a {type(config).__name__}")
    _require(_problems(config), f"{path}{whose}")
    return config


def require_kinds(given: Any, kinds: Mapping[str, Kind], where: str) -> None:
    """Raise CheckpointError unless it is an object in which every entry that is there and not null is of its kind."""
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got a {type(given).__name__}")
    _require(_unfit("", given, kinds), where)


def _require(problems: Iterator[tuple[str, str]], where: str) -> None:
    if found := list(problems):
        expected, got = zip(*found, strict=True)
        raise CheckpointError(
            f"{where}: expected a JSON object in which {', '.join(shortened(expected))}; got "
            f"{{{', '.join(shortened(got))}}}"
        )


def read_json(path: Path, whose: str = "") -> Any:
    """What a small file in JSON says; CheckpointError if it is none, or too large or too deep."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise CheckpointError(f"{path}{whose} has {size} bytes: expected a file in JSON of at most {LARGEST_FILE}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}{whose} is not JSON: {in_short(error)}") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
    if level:
        raise CheckpointError(f"{path}{whose} nests values more than {DEEPEST} deep: expected a plain description")
    return value


def _inside(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value)


def _problems(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is expected in the place of each wrong value, and that value."""
    yield from _unfit("", config, CONFIG, nullable=False)
    stated = config.get("pretrained_cfg") or config
    if isinstance(stated, dict):
        yield from _unfit("" if stated is config else "pretrained_cfg.", stated, PREPROCESSING)
    featx = config.get("featx")
    if isinstance(featx, dict):
        yield from _unfit("featx.", featx, FEATX, nullable=False)
        if isinstance(data := featx.get("data_config"), dict):
            yield from _unfit("featx.data_config.", data, DATA, nullable=False)
            for name in sorted(data.keys() - DATA.keys()):
                yield f"featx.data_config has {', '.join(DATA)} alone", f"{brief(name)}"


def _unfit(
    where: str, given: Mapping[str, Any], kinds: Mapping[str, Kind], nullable: bool = True
) -> Iterator[tuple[str, str]]:
    for name, kind in kinds.items():
        absent = name not in given or (nullable and given[name] is None)
        if not absent and not kind.fits(given[name]):
            yield f"{where}{name} is {kind.words}", f"{where + name!r}: {brief(given[name])}"


def brief(value: Any) -> str:
    """A foreign value for a message: at most a line, however large it is."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxdict = short.maxlist = 4
    short.maxlevel = 2
    return short.repr(value)


def check_described(variant: Variant[Any], config: Any, where: str) -> None:
    """Raise CheckpointError unless a model of the configuration can be built, run, and held in memory.

    where: the file's place, for the message. It is run, which imports PyTorch's rules for shapes, only if classes or
    functions differ from the variant's. What the variant itself raises is no fault of the file.
    """
    changed = {name: getattr(config, name) for name in _changed(variant.config, config)}
    if not changed:
        return
    try:
        with warnings.catch_warnings(), without_values(), _few_modules():
            warnings.simplefilter("ignore")  # what PyTorch warns of is refused below
            model = variant.build(config).eval()
            _require_values(model)
        if not all(map(is_plain, changed.values())):
            with torch.no_grad(), Shortcuts():
                model(torch.empty(1, config.in_chans, *variant.data.size, device="meta"))
    except FeatxError as error:
        raise CheckpointError(f"config.json of {where} describes a model that cannot be: {error}") from error
    except UNFIT as error:
        raise CheckpointError(
            f"config.json of {where} describes a model that cannot be built or run ({in_short(error)}): expected the "
            "fields of the family in model_args and featx.config"
        ) from error
    if (size := _bytes_of(model)) > ALWAYS_ALLOWED and size > MOST_GROWTH * _bytes_of(_published(variant)):
        raise CheckpointError(
            f"config.json of {where} describes a model of {size} bytes, more than {MOST_GROWTH} times those of the "
            "published one: pass its fields to create_model yourself if you want it"
        )


def _changed(published: Any, config: Any) -> list[str]:
    """Names of the fields in which a configuration differs, but for classes and channels, as long as they are few."""
    names = [field.name for field in fields(config)]
    return [
        name
        for name in names
        if (value := getattr(config, name)) != getattr(published, name)
        if name not in FREE or not isinstance(value, int) or value > FREE[name]
    ]


def _require_values(model: nn.Module) -> None:
    empty = [name for name, tensor in model.state_dict().items() if not tensor.numel()]
    if empty:
        raise ValueError(f"it has layers without channels: {names_in(empty)}")


def _published(variant: Variant[Any]) -> Backbone:
    with without_values():
        return variant.build(variant.config)


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


@contextmanager
def _few_modules() -> Iterator[None]:
    """Within the block, making more than MOST_MODULES modules in this thread is a ValueError."""
    made, thread = 0, get_ident()

    def count(_parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > MOST_MODULES:
            raise ValueError(f"it has more than {MOST_MODULES} modules")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
