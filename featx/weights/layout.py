"""Layouts: how other programs name and shape the tensors of the families we have, and of networks on these.

A file in `layouts` describes one program and lists a Layout per family in `LAYOUTS`.
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
from .state_dict_keys import Pair, State, StateDict, renamed, rules, rules_back

BACKBONE = "backbone."


@dataclass(frozen=True, slots=True)
class Layout:
    """How one program names and shapes the tensors of one family. All functions are pure.

    system: the program. family: name of the class whose own names are the native ones.
    recognises: whether these tensors are in the layout; no two layouts of a family recognise the same tensors.
    to_native: the tensors under the names of a model, all of which the second argument lists in no order.
    from_native: the way back, None where there is none.
    ignores: pattern of names that a family's model has no use for, and why.
    settings: fields of the family's configuration that the program's own layers ask for.
    data: fields of DataConfig that models of this program expect, where they differ from the variant's.
    notes: what the conversion changes besides names and shapes.
    """

    system: str
    family: str
    recognises: Callable[[State], bool]
    to_native: Callable[[State, Collection[str]], StateDict]
    from_native: Callable[[State], StateDict] | None = None
    ignores: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@cache
def all_layouts() -> tuple[Layout, ...]:
    """The layouts of every file in `layouts`."""
    files = sorted(module.name for module in iter_modules(layouts.__path__))
    return tuple(layout for file in files for layout in import_module(f"{layouts.__name__}.{file}").LAYOUTS)


def recognise(state: State, families: Collection[str]) -> Layout | None:
    """The layout that the tensors of a model of one of these families are in, None if their names are native."""
    found = [layout for layout in all_layouts() if layout.family in families and layout.recognises(state)]
    if len(found) > 1:
        raise CheckpointError(f"these tensors look like {[layout.system for layout in found]}: say which with layout=")
    return found[0] if found else None


def find(system: str, families: Collection[str], state: State | None = None) -> Layout:
    """The layout of that program for one of these families; CheckpointError with those there are.

    Of several, which differ in their settings, the one that recognises the tensors.
    """
    mine = [layout for layout in all_layouts() if layout.family in families]
    rows = [layout for layout in mine if layout.system == system or layout.system.startswith(f"{system}-")]
    if not rows:
        known = sorted({layout.system for layout in mine})
        raise CheckpointError(f"no layout {system!r} is known of this family: there are {['native', *known]}")
    return next((layout for layout in rows if state and layout.recognises(state)), rows[0])


def has(*patterns: str) -> Callable[[State], bool]:
    """A function that says whether each pattern is found in the beginning of some name."""

    def recognises(state: State) -> bool:
        return all(any(re.match(pattern, name) for name in state) for pattern in patterns)

    return recognises


@dataclass(frozen=True, slots=True)
class Whole:
    """How a program names a network whose backbone has the layout `backbone`. The methods are those of a Layout.

    prefix: what the backbone's names begin with there. pairs: of the other names, depending on those there are.
    """

    backbone: Layout
    prefix: str
    pairs: Callable[[State], Sequence[Pair]]

    def recognises(self, state: State) -> bool:
        """Whether the backbone is that one, and something beside it has names of `pairs`."""
        inside, outside = parted(state, self.prefix)
        known = any(name not in outside for name in renamed(outside, rules(self.pairs(state))))
        return known and self.backbone.recognises(inside)

    def to_native(self, state: State, names: Collection[str]) -> StateDict:
        """The backbone as its own layout has it, under `backbone.`, and the rest renamed."""
        inside, outside = parted(state, self.prefix)
        own = self.backbone.to_native(inside, names)
        return {**within(BACKBONE, own), **renamed(outside, rules(self.pairs(state)))}

    def from_native(self, state: State) -> StateDict:
        """The way back; CheckpointError with the names that the program does not have."""
        inside, outside = parted(state, BACKBONE)
        rest = renamed(outside, rules_back(self.pairs(state)))
        if strange := [name for name in rest if name in outside]:
            raise CheckpointError(
                f"{self.backbone.system} has no place for {len(strange)} of these tensors: {names_in(strange)}"
            )
        if self.backbone.from_native is None:
            raise CheckpointError(f"there is no way back into the layout of {self.backbone.system}")
        return {**within(self.prefix, self.backbone.from_native(inside)), **rest}


def parted(state: State, prefix: str) -> tuple[StateDict, StateDict]:
    """The tensors whose names begin so, without the prefix, and the others."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return inside, {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}


def within(prefix: str, state: State) -> StateDict:
    """The tensors with the prefix before their names."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}
