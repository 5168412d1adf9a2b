"""A file that people have: what it stores, which model must read it, and what that model must then compute."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from conftest import randomize
from torch import Tensor, nn

import featx

State = dict[str, Tensor]
Reference = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class PublishedFile:
    """A file and what must be made of it.

    model: our model that reads it, an extractor unless `logits`. build: makes what the file stores, and a function from
    images to the maps or logits that it must give. fields: of the model. options: of loading. size: of the images.
    suffix: of the file's name. allowed: classes that the user lets PyTorch unpickle. write: writes what the file
    stores to a path.
    """

    model: str
    build: Callable[[], tuple[Any, Reference]]
    fields: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    logits: bool = False
    size: tuple[int, int] = (64, 64)
    suffix: str = ".pth"
    allowed: tuple[type, ...] = ()
    write: Callable[[Any, Path], object] = torch.save


def seeded(make: Callable[[], nn.Module]) -> Any:
    """A module with random weights and norm statistics, equal at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomize(make())


def ours(
    model: str,
    saved: Callable[[State], Any],
    *,
    logits: bool = False,
    fields: Mapping[str, Any] | None = None,
    size: tuple[int, int] = (64, 64),
    suffix: str = ".pth",
    allowed: tuple[type, ...] = (),
    write: Callable[[Any, Path], object] = torch.save,
    **options: Any,
) -> PublishedFile:
    """A file that `saved` makes of the state dict of our own model."""
    fields = {"num_classes": 7, **(fields or {})} if logits else fields or {}

    def build() -> tuple[Any, Reference]:
        whole = seeded(lambda: featx.create_model(model, **fields))
        reference = (lambda x: [whole(x)]) if logits else featx.FeatureExtractWrapper(whole).eval()
        return saved(whole.state_dict()), reference

    return PublishedFile(model, build, fields, options, logits, size, suffix, allowed, write)


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def named(state: State, *rules: tuple[str, str]) -> State:
    """With the rules, patterns and replacements, applied to all names in order."""
    new = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        new[name] = tensor
    return new


def without(state: State, *beginnings: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(beginnings)}


def without_counters(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def zeros(*names: str) -> State:
    """What else a file holds."""
    return {name: torch.zeros(3, 3) for name in names}


def other(state: State) -> State:
    """The same names with zeros: a network that must not be loaded."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


TINY = {"depth": 2, "image_size": 64}
VIT, RESNET = "vit_tiny_patch16_224", "resnet18"
