"""Layouts of whole networks, made of the layout of their backbone and of pairs of names for the rest."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import CheckpointError, names_in
from .layout import Layout
from .names import renamed
from .pairs import Pair, rules, rules_back
from .state import State, StateDict

BACKBONE = "backbone."


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
