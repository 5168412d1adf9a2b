"""Layouts: how other programs name and shape the tensors of a family or of a network with such a backbone.

Each file in `layouts` describes one program and lists a Layout per family in `LAYOUTS`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..errors import CheckpointError, names_in
from . import layouts
from .state_dict_keys import RenamePair, State, StateDict, forward_rules, inverse_rules, rename_keys

BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Layout:
    """How one program names and shapes the tensors of one family. All functions are pure.

    system: the program. family: class name of the model with the native names.
    recognizes: whether a state dict is in this layout; at most one layout of a family recognizes a state dict.
    to_native: converts a state dict to native names; the second argument is the set of all names of the model.
    from_native: converts a native state dict to this layout; None if that is not supported.
    ignores: patterns of names that the family does not use, with the reason.
    settings: configuration fields that the program's weights require.
    data: DataConfig fields that the program's weights expect, where they differ from the variant's.
    notes: changes that the conversion makes besides names and shapes.
    """

    system: str
    family: str
    recognizes: Callable[[State], bool]
    to_native: Callable[[State, Collection[str]], StateDict]
    from_native: Callable[[State], StateDict] | None = None
    ignores: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@cache
def all_layouts() -> tuple[Layout, ...]:
    """All layouts of the files in `layouts`."""
    files = sorted(module.name for module in iter_modules(layouts.__path__))
    return tuple(layout for file in files for layout in import_module(f"{layouts.__name__}.{file}").LAYOUTS)


def recognize_layout(state: State, families: Collection[str]) -> Layout | None:
    """The layout of a state dict of one of these families; None if no layout recognizes it (native names)."""
    matches = [layout for layout in all_layouts() if layout.family in families and layout.recognizes(state)]
    if len(matches) > 1:
        known = [
            f"{layout.system!r} ({layout.notes[0]})" if layout.notes else repr(layout.system) for layout in matches
        ]
        raise CheckpointError(f"these tensors look like {' and like '.join(known)}: say which with layout=")
    return matches[0] if matches else None


def find_layout(system: str, families: Collection[str], state: State | None = None) -> Layout:
    """The layout of a program for one of these families; if it has several, the one that recognizes the tensors.

    Raises:
        CheckpointError: the program has no layout for these families; the message lists those that exist.
    """
    available = [layout for layout in all_layouts() if layout.family in families]
    rows = [layout for layout in available if layout.system == system or layout.system.startswith(f"{system}-")]
    if not rows:
        known = sorted({layout.system for layout in available})
        raise CheckpointError(f"no layout {system!r} for this family: choose one of {['native', *known]}")
    return next((layout for layout in rows if state and layout.recognizes(state)), rows[0])


def has_keys(*patterns: str) -> Callable[[State], bool]:
    """A predicate on state dicts: whether each pattern matches the start of at least one name."""

    def recognizes(state: State) -> bool:
        return all(any(re.match(pattern, name) for name in state) for pattern in patterns)

    return recognizes


@dataclass(frozen=True, slots=True)
class CompositeLayout:
    """How a program names a network whose backbone has the layout `backbone`. The methods are those of a Layout.

    prefix: the program's prefix of backbone names. pairs: rename pairs of the other names, given the state dict.
    """

    backbone: Layout
    prefix: str
    pairs: Callable[[State], Sequence[RenamePair]]

    def recognizes(self, state: State) -> bool:
        """Whether the backbone's layout recognizes the tensors under the prefix and `pairs` rename another one."""
        inside, outside = split_prefix(state, self.prefix)
        known = any(name not in outside for name in rename_keys(outside, forward_rules(self.pairs(state))))
        return known and self.backbone.recognizes(inside)

    def to_native(self, state: State, names: Collection[str]) -> StateDict:
        """Convert the backbone by its own layout and put it under `backbone.`; rename the other tensors."""
        inside, outside = split_prefix(state, self.prefix)
        converted = self.backbone.to_native(inside, names)
        return {**add_prefix(BACKBONE, converted), **rename_keys(outside, forward_rules(self.pairs(state)))}

    def from_native(self, state: State) -> StateDict:
        """Convert a native state dict to this layout; CheckpointError lists names that the program does not have."""
        inside, outside = split_prefix(state, BACKBONE)
        rest = rename_keys(outside, inverse_rules(self.pairs(state)))
        if unsupported := [name for name in rest if name in outside]:
            raise CheckpointError(
                f"{self.backbone.system} has no place for {len(unsupported)} of these tensors: {names_in(unsupported)}"
            )
        if self.backbone.from_native is None:
            raise CheckpointError(f"conversion to the layout of {self.backbone.system} is not supported")
        return {**add_prefix(self.prefix, self.backbone.from_native(inside)), **rest}


def split_prefix(state: State, prefix: str) -> tuple[StateDict, StateDict]:
    """The tensors whose names start with the prefix, without it, and the other tensors."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inside, {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}


def add_prefix(prefix: str, state: State) -> StateDict:
    """The tensors with the prefix added to their names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}
