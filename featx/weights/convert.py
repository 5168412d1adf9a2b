"""Checkpoints looked into, and from one layout into another."""

from collections import Counter
from dataclasses import dataclass

from ..backbone import Backbone
from ..empty import without_values
from ..errors import ArgumentError, CheckpointError
from ..registry import Variant, lookup
from ..report import LoadReport
from .checkpoint import NATIVE, LoadOptions, Weights, open_checkpoint, read_tensors
from .layout import all_layouts, find
from .load import all_finite, families, fitted, names_of
from .state_dict_keys import StateDict, unwrapped

NATIVE_NAMES = (NATIVE, "timm")  # our names are timm's


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds. systems: the programs whose layout it has, by family; empty if the names are native."""

    tensors: int
    values: int
    nbytes: int
    dtypes: dict[str, int]
    not_finite: tuple[str, ...]
    systems: dict[str, str]
    first: tuple[str, ...]


def inspect(weights: Weights, container: str | None = None) -> Contents:
    """What is in a file of weights, without a model. Raises as `load_weights` does."""
    _, state = read_tensors(weights, LoadOptions(container=container))
    found = {
        layout.family: layout.system for bare in unwrapped(state) for layout in all_layouts() if layout.recognises(bare)
    }
    return Contents(
        len(state),
        sum(tensor.numel() for tensor in state.values()),
        sum(tensor.nbytes for tensor in state.values()),
        dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in state.values())),
        tuple(name for name, tensor in state.items() if not all_finite(tensor)),
        found,
        tuple(state)[:5],
    )


def rehearse(weights: Weights, name: str, options: LoadOptions) -> LoadReport:
    """What loading the checkpoint into the model `name` would do; raises as `load_weights` does.

    A classifier of another size counts as one to be left fresh.
    """
    model = _empty(name)
    opened = open_checkpoint(weights, names_of(model), families(model), options)
    return fitted(model, opened, resized=(f"{model.last_linear}.",))[1]


def convert(weights: Weights, name: str, to: str, options: LoadOptions) -> StateDict:
    """The tensors of a checkpoint of the model `name`, all of them, as the program `to` names and shapes them.

    Raises CheckpointError if they do not fit the model, or if there is no way back into that layout.
    """
    model = _empty(name)
    opened = open_checkpoint(weights, names_of(model), families(model), options)
    classifier = f"{model.last_linear}."
    state, _ = fitted(model, opened, resized=(classifier,), finite=False)
    state |= {name: tensor for name, tensor in opened.state.items() if name.startswith(classifier)}
    if to in NATIVE_NAMES:
        return state
    ways = [layout.from_native for layout in all_layouts() if layout.system == to and layout.family in families(model)]
    back = next((way for way in ways if way is not None), None)
    if back is None:
        find(to, families(model), state)  # says which programs there are
        raise CheckpointError(f"there is no way back into the layout of {to} for {name}")
    return back(state)


def _empty(name: str) -> Backbone:
    variant = lookup(name)
    if not isinstance(variant, Variant):
        raise ArgumentError(f"{name} is a user's model: only the families of featx are known in other layouts")
    with without_values():
        return variant.build(variant.config)
