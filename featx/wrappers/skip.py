"""Leave out of a model what some outputs do not depend on, while its own forward stays as it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .flow import Run


class Skipped(nn.Module):
    """Stands in for a module whose result does not matter: zeros like its first tensor, where that returned tensors.

    Zeros, and not the tensor itself, because what comes next may write to it.
    """

    def __init__(self, output: Any) -> None:
        super().__init__()
        leaves, self._structure = tree_flatten(output)
        self._is_tensor = tuple(isinstance(leaf, Tensor) for leaf in leaves)
        self._plain = isinstance(output, Tensor)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)))
        if self._plain:
            return zeros
        return tree_unflatten([zeros if tensor else None for tensor in self._is_tensor], self._structure)


def unneeded(model: nn.Module, needs: int, bits: dict[str, int], runs: Sequence[Run]) -> list[str]:
    """Paths of the outermost modules and of the parameters that no bit of `needs` stands for, in running order.

    A container that is not called itself is left, because what calls its entries has to find them.
    """
    calls = [path for run in runs for path in run.calls]
    place = {path: i for i, path in enumerate(calls)}
    of_module = {id(module): bits[path] for path, module in model.named_modules()}
    of_parameter = {id(parameter): bits[name] for name, parameter in model.named_parameters()}

    def needed(module: nn.Module) -> bool:
        own = [of_module[id(part)] for part in module.modules()]
        return any(bit & needs for bit in [*own, *(of_parameter[id(parameter)] for parameter in module.parameters())])

    def visit(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, parameter in module._parameters.items():
            if parameter is not None and not of_parameter[id(parameter)] & needs:
                yield prefix + name
        for name, child in module.named_children():
            path = prefix + name
            holds = next(child.parameters(), None) is not None
            if not needed(child) and (path in place or (holds and not child._modules)):
                yield path
            elif path not in place or needed(child):
                yield from visit(child, path + ".")

    return sorted(visit(model, ""), key=lambda path: place.get(path, len(calls)))


def skip(model: nn.Module, paths: Sequence[str], runs: Sequence[Run]) -> None:
    """Replace the modules at `paths` in place by ones that compute nothing, and the parameters there by None."""
    returned = {path: calls[-1].output for run in reversed(runs) for path, calls in run.calls.items()}
    for path in paths:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        if name in parent._parameters:
            parent._parameters[name] = None
        else:
            parent._modules[name] = Skipped(returned.get(path, torch.empty(0))).train(parent.training)


def largest(candidates: Sequence[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """As many of `candidates` as can be found that together work, trying all of them first, and later ones before."""
    chosen: list[str] = []

    def grow(group: Sequence[str]) -> None:
        if works([*chosen, *group]):
            chosen.extend(group)
        elif len(group) > 1:
            half = len(group) // 2
            grow(group[half:])
            grow(group[:half])

    if candidates:
        grow(candidates)
    return chosen
