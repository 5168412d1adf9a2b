"""A checkpoint, opened: its tensors under a model's own names, whatever wrote them."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from ..errors import ArgumentError, CheckpointError, names_in
from .layout import Layout, find, recognise
from .readers import read_checkpoint, unchanged
from .source import HUB, locate
from .state_dict_keys import StateDict, backbone_prefix, plain, require_values, tensors_of, unflattened, unwrapped

Weights = str | Path | Mapping[str, Any]
NATIVE = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which weights a model gets, how they are read, and where they are put; see `create_model` and `load_weights`.

    Raises ArgumentError if there are two sources of weights.
    """

    pretrained: bool = False
    checkpoint_path: Weights | None = None
    auto_mapping: bool = True
    layout: str | None = None
    container: str | None = None
    cache_dir: str | Path | None = None
    mmap: bool | None = None
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.pretrained and self.checkpoint_path is not None:
            raise ArgumentError(
                "pretrained=True and checkpoint_path both say where weights come from: pass one of them"
            )

    @classmethod
    def split(cls, arguments: Mapping[str, Any], pretrained: bool) -> tuple[Self, dict[str, Any]]:
        """The options among keyword arguments, and the other arguments."""
        names = {one.name for one in fields(cls)}
        options = {name: value for name, value in arguments.items() if name in names}
        others = {name: value for name, value in arguments.items() if name not in names}
        return cls(pretrained=pretrained, **options), others

    def maps(self, weights: Weights) -> bool:
        """Whether tensors may be pages of the files at `weights`: by default of those in the Hub's cache alone.

        These are called by their content, and replaced by others instead of being written to.
        """
        return str(weights).startswith(HUB) if self.mmap is None else self.mmap


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """state: tensors by native names. source: where they came from. layout: what they were converted from, if at all.

    skipped: names in the checkpoint that no model of the family has a use for, and why. borrowed: the tensors belong to
    the caller.
    """

    state: StateDict
    source: str
    layout: Layout | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    borrowed: bool = False


def open_checkpoint(
    weights: Weights, names: Collection[str], families: Collection[str], how: LoadOptions
) -> Checkpoint:
    """The tensors of `weights`, what `locate` finds or a dictionary, for a model of `families` that has these `names`.

    Raises WeightsNotFoundError and CheckpointError.
    """
    if not how.auto_mapping and how.layout not in (None, NATIVE):
        raise CheckpointError(f"auto_mapping=False takes the model's own names alone: leave layout={how.layout!r} out")
    borrowed = isinstance(weights, Mapping)
    source, state = read_tensors(weights, how)
    if not how.auto_mapping:
        return Checkpoint(state, source, borrowed=borrowed)
    state, layout = _recognised(state, names, families, how.layout)
    skipped: dict[str, str] = {}
    if layout is None and (prefix := backbone_prefix(state, names)) is not None:
        part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        inside, layout = _recognised(part, names, families, how.layout)
        if layout is not None or any(name in inside for name in names):
            skipped = {name: f"outside {prefix.rstrip('.')}" for name in state if not name.startswith(prefix)}
            state = inside
    if layout is None:
        return Checkpoint(unflattened(state, names), source, None, skipped, borrowed)
    kept, ignored = _split(state, layout.ignores)
    return Checkpoint(layout.to_native(kept, names), source, layout, {**skipped, **ignored}, borrowed)


def read_tensors(weights: Weights, how: LoadOptions) -> tuple[str, StateDict]:
    """Where the tensors are, in words, and the tensors; of several files all together."""
    if isinstance(weights, Mapping):
        return "the checkpoint", tensors_of(weights, how.container)
    paths, mapped, state = locate(weights, how.cache_dir), how.maps(weights), {}
    if len(paths) == 1:
        return str(paths[0]), _tensors_in(paths[0], how.container, mapped)
    with unchanged(paths, weights):
        for path in paths:
            shard = _tensors_in(path, how.container, mapped)
            if again := sorted(state.keys() & shard.keys()):
                raise CheckpointError(f"{path} holds tensors that another shard holds too: [{names_in(again)}]")
            state.update(shard)
    return str(weights), state


def _tensors_in(path: Path, container: str | None, mapped: bool) -> StateDict:
    held = read_checkpoint(path, mapped)
    try:
        state = tensors_of(held, container)
        require_values(state)
        return plain(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _recognised(
    state: StateDict, names: Collection[str], families: Collection[str], asked: str | None
) -> tuple[StateDict, Layout | None]:
    """The tensors without prefixes that mean nothing, and their layout; some layouts begin with such a prefix."""
    for bare in unwrapped(state, names):
        state = bare
        if asked is None and (layout := recognise(bare, families)) is not None:
            return bare, layout
    return state, None if asked in (None, NATIVE) else find(asked, families, state)


def _split(state: StateDict, ignores: Mapping[str, str]) -> tuple[StateDict, dict[str, str]]:
    """The tensors that no pattern of `ignores` matches, and the reasons for the others."""
    reasons = {
        name: reason for name in state for pattern, reason in ignores.items() if re.match(pattern, name) is not None
    }
    return {name: tensor for name, tensor in state.items() if name not in reasons}, reasons
