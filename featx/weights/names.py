"""Names of tensors as a program chose them, freed of what training scripts and wrappers write around them.

Every function is pure: dictionary in, new dictionary out.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .read import StateDict

CONTAINERS = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "body.", "graph_module.")

# A pattern, and what takes its place: both as re.sub has them.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def tensors_of(checkpoint: Any) -> StateDict:
    """The named tensors in what a file held.

    A training checkpoint is opened at `state_dict` or `model`. Raises CheckpointError if it holds anything else.
    """
    for container in CONTAINERS:
        if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get(container), Mapping):
            checkpoint = checkpoint[container]
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"expected named tensors, got a {type(checkpoint).__name__}")
    others = {str(name): type(value).__name__ for name, value in checkpoint.items() if not isinstance(value, Tensor)}
    if others:
        raise CheckpointError(
            f"expected tensors by name, or a dictionary with them under one of {CONTAINERS}; got also {others}"
        )
    return dict(checkpoint)


def unwrapped(state: StateDict, wanted: Collection[str]) -> StateDict:
    """Without the prefixes that all names share, unless the model's own names, `wanted`, begin so."""
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        if any(name.startswith(prefix) for name in wanted):
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def unflattened(state: StateDict, wanted: Collection[str]) -> StateDict:
    """`a_0.b` becomes `a.0.b` where the model has the second name and not the first."""

    def dotted(name: str) -> str:
        candidate = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
        return candidate if name not in wanted and candidate in wanted else name

    return {dotted(name): tensor for name, tensor in state.items()}


def renamed(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> StateDict:
    """Every rule, in order, on every name. Raises CheckpointError if two tensors end up with one name."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    new: StateDict = {}
    for name, tensor in state.items():
        target = name
        for pattern, replacement in compiled:
            target = pattern.sub(replacement, target)
        if target in new:
            raise CheckpointError(f"two tensors are {target!r} in the model, one of them {name!r} in the checkpoint")
        new[target] = tensor
    return new
