"""Leave out of a model what some outputs do not depend on, while its own forward stays as it is."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import ContractError
from .flow import Call, Run
from .shapes import Side, sides


class Skipped(nn.Module):
    """Stands in for a module whose result does not matter: zeros where that returned tensors.

    They have the shapes of its results, as far as these follow from its first tensor, and else of that tensor. Other
    values are those it returned. It has the attributes of `module`, but no parameters.
    """

    def __init__(self, module: nn.Module, calls: Sequence[Call]) -> None:
        super().__init__()
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | tuple | None) and name not in vars(self):
                setattr(self, name, value)
        for name, child in module._modules.items():
            self.add_module(name, None if child is None else Skipped(child, ()))
        leaves, structure = tree_flatten(calls[0].output if calls else torch.empty(0))
        self._leaves, self._sides = tuple(_kept(leaf) for leaf in leaves), _sides(calls)
        self._structure = None if structure.is_leaf() else structure

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        if x is None:
            raise ContractError("a module whose result does not matter was called without a tensor")
        zeros = [_zeros(x, sides) for sides in self._sides]
        if self._structure is None:
            return zeros[0]
        left = iter(zeros)
        return tree_unflatten([next(left) if leaf is Tensor else leaf for leaf in self._leaves], self._structure)


def _kept(leaf: Any) -> Any:
    """A leaf of what was returned: the class for a tensor, itself if it is a plain value."""
    if isinstance(leaf, Tensor):
        return Tensor
    return leaf if isinstance(leaf, int | float | str) else None


def _sides(calls: Sequence[Call]) -> tuple[tuple[Side, ...] | None, ...]:
    """For each tensor of the first call, how its shape follows from the one the module is given, None if unknown."""
    if not calls:
        return (None,)
    alike = [call for call in calls if call.given is not None and len(call.leaves) == len(calls[0].leaves)]
    given = [call.given for call in alike if call.given is not None]
    return tuple(
        sides(given, [tuple(call.leaves[place].shape) for call in alike]) if alike else None
        for place in range(len(calls[0].leaves))
    )


def _zeros(x: Tensor, sides: tuple[Side, ...] | None) -> Tensor:
    """New ones and not `x` itself, because what comes next may write to it."""
    if sides is None:
        return torch.zeros_like(x)
    known = all(side.axis is None or side.axis < x.ndim for side in sides)
    shape = [side.of(x.shape) for side in sides] if known else [-1]
    if min(shape, default=0) < 0:
        raise ContractError(f"a module whose result does not matter was called with a tensor {tuple(x.shape)}")
    return x.new_zeros(shape)


def unneeded(model: nn.Module, needs: int, bits: dict[str, int], runs: Sequence[Run]) -> list[str]:
    """Paths of the outermost modules and of the parameters that no bit of `needs` stands for, in running order.

    A container that is not called itself is left, because what calls its entries has to find them, and so is a module
    that is called without a tensor, from which the shape of its result would follow.
    """
    blind = {path for run in runs for path, calls in run.calls.items() if any(call.given is None for call in calls)}
    called = dict.fromkeys(path for run in runs for path in run.calls)
    place = {path: i for i, path in enumerate(called)}
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
            if needed(child) or path in blind or (path not in place and child._modules):
                yield from visit(child, path + ".")
            elif path in place or child._parameters:
                yield path

    return sorted(visit(model, ""), key=lambda path: place.get(path, len(place)))


def skip(model: nn.Module, paths: Sequence[str], runs: Sequence[Run]) -> None:
    """Replace the modules at `paths` in place by ones that compute nothing, and the parameters there by zeros."""
    calls: dict[str, list[Call]] = {}
    for run in runs:
        for path, made in run.calls.items():
            calls.setdefault(path, []).append(made[-1])
    for path in paths:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        if (module := parent._modules.get(name)) is not None:
            parent._modules[name] = Skipped(module, calls.get(path, ())).train(parent.training)
            continue
        zeros = parent.get_parameter(name).detach().new_zeros(()).expand(parent.get_parameter(name).shape)
        del parent._parameters[name]
        parent.register_buffer(name, zeros, persistent=False)  # expanded, it takes no memory


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
