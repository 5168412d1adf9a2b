"""Layouts: how other programs name and shape the tensors of the families we have.

A file in `layouts` describes one program and lists a Layout per family in `LAYOUTS`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from ..errors import CheckpointError
from . import layouts
from .state import State, StateDict


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
