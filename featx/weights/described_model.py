"""Whether a configuration that a file states can be built, tried without values and within limits."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..backbone import Backbone
from ..empty import without_values
from ..errors import CheckpointError, FeatxError, in_short, names_in
from ..registry import Variant
from ..tracing.meta_kernels import Shortcuts
from .values import is_plain

MOST_MODULES = 20_000  # of a network; the largest here has four thousand
ALWAYS_ALLOWED = 512 << 20  # bytes of tensors
MOST_GROWTH = 4  # bytes of tensors over those of the published variant

FREE = {"num_classes": 100_000, "in_chans": 100}  # up to so many, every model can have them

# What layers raise that are made with numbers, or classes, that do not go together.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
