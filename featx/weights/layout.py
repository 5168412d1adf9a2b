"""Names of tensors as the model has them, from the names other programs write around or into them.

Every function is pure: dictionary in, new dictionary out.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .read import StateDict

CONTAINERS = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")


def to_native(checkpoint: Any, wanted: Collection[str]) -> StateDict:
    """The tensors of a checkpoint under the model's names, which `wanted` lists.

    A training checkpoint is opened at `state_dict` or `model`. A prefix that all its names share and a level that was
    flattened (`layers_0.weight` for `layers.0.weight`) are undone. Raises CheckpointError if it holds anything else.
    """
    state = tensors_of(checkpoint)
    while prefix := next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None):
        if any(name.startswith(prefix) for name in wanted):
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return unflatten(state, wanted)


def tensors_of(checkpoint: Any) -> StateDict:
    """The named tensors in what a file held."""
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


def unflatten(state: StateDict, wanted: Collection[str]) -> StateDict:
    """`a_0.b` becomes `a.0.b` where the model has the second name and not the first."""

    def renamed(name: str) -> str:
        dotted = re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
        return dotted if name not in wanted and dotted in wanted else name

    return {renamed(name): tensor for name, tensor in state.items()}
