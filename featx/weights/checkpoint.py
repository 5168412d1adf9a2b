"""Checkpoints: options for loading, and tensors renamed from any program's keys to the model's."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from ..errors import ArgumentError, CheckpointError, names_in
from .download import HUB, locate
from .key_groups import NATIVE, find_group
from .layout import Layout
from .readers import read_checkpoint, require_unchanged
from .state_dict_keys import WRAPPERS, Contents, StateDict, extract_state_dict, plain_tensors, require_values

Weights = str | Path | Mapping[str, Any]
# Names beside those of a backbone that programs of self-supervised training add to it.
TRAINING_HEADS = {
    r"(projection_head|projector|prototypes|predictor|dino_head|ibot_head)\d*\.": "head of self-supervised training",
    r"queue(_ptr)?$": "queue of contrastive training",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Which weights to load, how to read them, and the target device and dtype, as in `create_model`, `load_weights`.

    Raises:
        ArgumentError: both `pretrained` and `checkpoint_path` name a source.
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
        """Split keyword arguments into load options and the other arguments."""
        names = {option.name for option in fields(cls)}
        options = {name: value for name, value in arguments.items() if name in names}
        others = {name: value for name, value in arguments.items() if name not in names}
        return cls(pretrained=pretrained, **options), others

    def allows_mmap(self, weights: Weights) -> bool:
        """Whether the files at `weights` may be memory-mapped: by default only those in the Hub's cache.

        Cached files are named by their content hash, and are replaced instead of overwritten.
        """
        return str(weights).startswith(HUB) if self.mmap is None else self.mmap


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Tensors of a checkpoint by native names.

    state: the tensors. source: path or address. layout: the layout they were converted from; None for native names.
    prefix: removed from the names. skipped: checkpoint names that the family does not use, with the reason. borrowed:
    whether the caller owns the tensors.
    """

    state: StateDict
    source: str
    layout: Layout | None = None
    prefix: str = ""
    skipped: dict[str, str] = field(default_factory=dict)
    borrowed: bool = False


def open_checkpoint(
    weights: Weights, names: Collection[str], families: Collection[str], how: LoadOptions
) -> Checkpoint:
    """Read a checkpoint and rename its tensors to native names.

    Args:
        weights: a state dict, or a place as in `locate`.
        names: state dict keys of the full model.
        families: class names of the model, which select the layouts.
        how: how to read the checkpoint.

    Raises:
        WeightsNotFoundError: the weights were not found.
        CheckpointError: the checkpoint cannot be read, or its layout is ambiguous.
    """
    if not how.auto_mapping and how.layout not in (None, NATIVE):
        raise CheckpointError(f"auto_mapping=False takes the model's own names alone: leave layout={how.layout!r} out")
    borrowed = isinstance(weights, Mapping)
    source, contents = read_tensors(weights, how)
    skipped = dict.fromkeys(contents.others, "not a tensor")
    if not how.auto_mapping:
        return Checkpoint(contents.state, source, skipped=skipped, borrowed=borrowed)
    group = find_group(contents.state, names, families, how.layout)
    if len(group.state) < len(contents.state):
        outside = f"outside {group.prefix.rstrip('.')}"
        names_inside = {name for name in contents.state if WRAPPERS.sub("", name).startswith(group.prefix)}
        skipped |= {name: outside for name in contents.state if name not in names_inside}
    ignores, wanted = (TRAINING_HEADS, names) if group.layout is None else (group.layout.ignores, ())
    kept, ignored = _without_ignored(group.state, ignores, wanted)
    state = kept if group.layout is None else group.layout.to_native(kept, names)
    return Checkpoint(state, source, group.layout, group.prefix, {**skipped, **ignored}, borrowed)


def read_tensors(weights: Weights, how: LoadOptions) -> tuple[str, Contents]:
    """A description of the source, and the tensors of all its files."""
    if isinstance(weights, Mapping):
        return "the checkpoint", extract_state_dict(weights, how.container)
    paths, mapped, state = locate(weights, how.cache_dir), how.allows_mmap(weights), {}
    if len(paths) == 1:
        return str(paths[0]), _read_contents(paths[0], how.container, mapped)
    others: tuple[str, ...] = ()
    with require_unchanged(paths, weights):
        for path in paths:
            shard = _read_contents(path, how.container, mapped)
            if repeated := sorted(state.keys() & shard.state.keys()):
                raise CheckpointError(f"{path} holds tensors that another shard holds too: [{names_in(repeated)}]")
            state.update(shard.state)
            others += shard.others
    return str(weights), Contents(state, others)


def _read_contents(path: Path, container: str | None, mapped: bool) -> Contents:
    held = read_checkpoint(path, mapped)
    try:
        contents = extract_state_dict(held, container)
        require_values(contents.state)
        return Contents(plain_tensors(contents.state), contents.others)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _without_ignored(
    state: StateDict, ignores: Mapping[str, str], wanted: Collection[str]
) -> tuple[StateDict, dict[str, str]]:
    """The tensors that no pattern of `ignores` matches or that are wanted, and the other names with the reason."""
    reasons = {
        name: reason
        for name in state
        for pattern, reason in ignores.items()
        if re.match(pattern, name) is not None and name not in wanted
    }
    return {name: tensor for name, tensor in state.items() if name not in reasons}, reasons
