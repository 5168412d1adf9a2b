"""How a model computes some tensors, from autograd's graph: the operations, their settings and the parameters."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .copies import meta_twin
from .meta_kernels import Shortcuts

Read = Callable[[Any, Tensor], Sequence[Tensor]]


class Computation(NamedTuple):
    """A hash of the operations that make each tensor, and the names of the parameters that they begin with."""

    hashes: tuple[int, ...]
    parameters: frozenset[str]


@torch.inference_mode(False)  # in which parameters cannot want gradients
def read_on_meta(model: nn.Module, read: Read, images: Tensor) -> list[Tensor]:
    """What `read` takes of a copy of the model in eval mode without values."""
    return _read(meta_twin(model), read, images, grad=False)


@torch.inference_mode(False)
def computation_of(twin: nn.Module, read: Read, images: Tensor) -> Computation:
    """How a model without values, which `meta_twin` made, computes what `read` takes of it."""
    outputs = _read(twin, read, images, grad=True)
    return computation(outputs, {id(parameter): name for name, parameter in twin.named_parameters()})


def _read(twin: nn.Module, read: Read, images: Tensor, grad: bool) -> list[Tensor]:
    with torch.set_grad_enabled(grad), Shortcuts():
        return list(read(twin, torch.empty_like(images, device="meta")))


def computation(outputs: Iterable[Tensor], names: dict[int, str]) -> Computation:
    """How each output was made: its operations with their settings, and the leaves, whose names are by their id."""
    hashes: dict[Any, int] = {}
    reached: set[str] = set()

    def leaf(node: Any) -> str:
        name = names.get(id(node.variable), "?")
        reached.add(name)
        return name

    def hash_of(root: Any) -> int:
        todo = [root]
        while todo:
            node = todo[-1]
            missing = [child for child, _ in node.next_functions if child is not None and child not in hashes]
            if missing:
                todo += missing
                continue
            todo.pop()
            children = tuple((hashes[child], i) for child, i in node.next_functions if child is not None)
            own = leaf(node) if hasattr(node, "variable") else _settings(node)
            hashes[node] = hash((node.name(), own, children))
        return hashes[root]

    made = tuple(hash(tuple(t.shape)) if t.grad_fn is None else hash_of(t.grad_fn) for t in outputs)
    return Computation(made, frozenset(reached))


def _settings(node: Any) -> tuple[str, ...]:
    """What an operation was called with beside tensors."""
    values = ((name, getattr(node, name)) for name in _saved_names(type(node)))
    return tuple(f"{name}={value}" for name, value in values if isinstance(value, int | float | str | bool))


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    """Attributes that are no tensors, as far as their names tell."""
    tensors = ("_saved_self", "_saved_result", "_saved_tensors", "_saved_other", "_saved_weight", "_saved_input")
    return tuple(name for name in dir(kind) if name.startswith("_saved_") and name not in tensors)
