"""What stands in a model for modules whose results do not matter: zeros of the shapes that these would have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import ContractError
from .module_trace import ModuleCall

# Cells that convolutions without padding may take away.
MOST_LOST = 8

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxisRule:
    """One side of a tensor: (times * given[axis] + plus) // divided_by; `plus` itself if it depends on none."""

    axis: int | None
    times: int = 1
    plus: int = 0
    divided_by: int = 1

    def of(self, given: Sequence[int]) -> int:
        return self.plus if self.axis is None else (self.times * given[self.axis] + self.plus) // self.divided_by


class Placeholder(nn.Module):
    """Stands in for a module whose result does not matter: zeros where that returned tensors.

    They have the shapes of its results, as far as these follow from its first tensor, and else of that tensor. Other
    values are those it returned. It has the attributes of `module` and its forward hooks of the classes `hooks`, but no
    parameters.
    """

    def __init__(self, module: nn.Module, calls: Sequence[ModuleCall], hooks: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.train(module.training)
        kept = [hook for hook in module._forward_hooks.values() if isinstance(hook, hooks)]
        for hook in kept:
            self.register_forward_hook(hook)
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | tuple | None) and name not in vars(self):
                setattr(self, name, value)
        for name, child in module._modules.items():
            self.add_module(name, None if child is None else Placeholder(child, ()))
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


def is_predictable(calls: Sequence[ModuleCall]) -> bool:
    """Whether a placeholder can return what the calls did: each is given a tensor, and other values never differ."""
    values = [[_kept(leaf) for leaf in tree_leaves(call.output)] for call in calls]
    return all(call.shape is not None for call in calls) and all(other == values[0] for other in values)


def _kept(leaf: Any) -> Any:
    """A leaf of what was returned: the class for a tensor, itself if it is a plain value."""
    if isinstance(leaf, Tensor):
        return Tensor
    return leaf if isinstance(leaf, int | float | str) else None


def _sides(calls: Sequence[ModuleCall]) -> tuple[tuple[AxisRule, ...] | None, ...]:
    """For each tensor of the first call, how its shape follows from the one the module is given, None if unknown."""
    if not calls:
        return (None,)
    alike = [call for call in calls if call.shape is not None and len(call.leaves) == len(calls[0].leaves)]
    given = [call.shape for call in alike if call.shape is not None]
    return tuple(
        sides(given, [tuple(call.leaves[place].shape) for call in alike]) if alike else None
        for place in range(len(calls[0].leaves))
    )


def _zeros(x: Tensor, sides: tuple[AxisRule, ...] | None) -> Tensor:
    """New ones and not `x` itself, because what comes next may write to it."""
    if sides is None:
        return torch.zeros_like(x)
    known = all(side.axis is None or side.axis < x.ndim for side in sides)
    shape = [side.of(x.shape) for side in sides] if known else [-1]
    if min(shape, default=0) < 0:
        raise ContractError(f"a module whose result does not matter was called with a tensor {tuple(x.shape)}")
    return x.new_zeros(shape)


def sides(given: Sequence[Shape], returned: Sequence[Shape]) -> tuple[AxisRule, ...] | None:
    """How shapes of one rank `returned` follow from those `given` in the same calls; None if that is not seen."""
    if len({len(shape) for shape in returned}) != 1 or len({len(shape) for shape in given}) != 1:
        return None
    found = [_side(given, [shape[axis] for shape in returned], axis) for axis in range(len(returned[0]))]
    return None if None in found else tuple(side for side in found if side is not None)


def _side(given: Sequence[Shape], lengths: Sequence[int], axis: int) -> AxisRule | None:
    """The axis of the same number first: what does not change along it is the batch or the channels."""
    others = sorted(range(len(given[0])), key=lambda other: other != axis)
    if axis < len(given[0]) and [shape[axis] for shape in given] == list(lengths):
        return AxisRule(axis)
    if len(set(lengths)) == 1:
        return AxisRule(None, plus=lengths[0])
    return next(
        (side for other in others if (side := _linear([shape[other] for shape in given], lengths, other))), None
    )


def _linear(given: Sequence[int], lengths: Sequence[int], axis: int) -> AxisRule | None:
    if all(number and length % number == 0 for number, length in zip(given, lengths, strict=True)):
        times = {length // number for number, length in zip(given, lengths, strict=True)}
        if len(times) == 1:
            return AxisRule(axis, times.pop())
    span, count = max(given) - min(given), max(lengths) - min(lengths)
    divided_by = round(span / count)
    if not divided_by:
        return None
    least = max(length * divided_by - number for number, length in zip(given, lengths, strict=True))
    most = min(length * divided_by - number for number, length in zip(given, lengths, strict=True)) + divided_by - 1
    # rounding up is what padded convolutions do, rounding down what patches do
    plus = next((plus for plus in (divided_by - 1, 0, most) if least <= plus <= most), None)
    if plus is None or plus < -MOST_LOST * divided_by:
        return None
    return AxisRule(axis, 1, plus, divided_by)
