"""Placeholders for modules whose outputs are not used: they return zeros of the same shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from ..errors import ContractError
from .module_trace import ModuleCall

# Largest number of cells that convolutions without padding may remove from a side.
MOST_REMOVED = 8

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AxisRule:
    """The length of an output axis: (times * shape[axis] + plus) // divided_by, or `plus` if `axis` is None."""

    axis: int | None
    times: int = 1
    plus: int = 0
    divided_by: int = 1

    def length(self, shape: Sequence[int]) -> int:
        return self.plus if self.axis is None else (self.times * shape[self.axis] + self.plus) // self.divided_by


class Placeholder(nn.Module):
    """Replaces a module whose output is not used, and returns zeros in place of tensors.

    Their shapes follow from the first input by the rules inferred from `calls`; without a rule they are that of the
    input. Plain values in the output are returned as in the first call. A placeholder has the plain attributes of the
    module and its forward hooks of the classes `hooks`, but no parameters.
    """

    def __init__(self, module: nn.Module, calls: Sequence[ModuleCall], hooks: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.train(module.training)
        for hook in module._forward_hooks.values():
            if isinstance(hook, hooks):
                self.register_forward_hook(hook)
        for name, value in vars(module).items():
            if isinstance(value, int | float | str | tuple | None) and name not in vars(self):
                setattr(self, name, value)
        for name, child in module._modules.items():
            self.add_module(name, None if child is None else Placeholder(child, ()))
        leaves, structure = tree_flatten(calls[0].output if calls else torch.empty(0))
        self._leaves, self._rules = tuple(map(_constant, leaves)), _output_rules(calls)
        self._structure = None if structure.is_leaf() else structure

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
        if x is None:
            raise ContractError("a placeholder for an unused module was called without a tensor")
        zeros = [_zeros(x, rules) for rules in self._rules]
        if self._structure is None:
            return zeros[0]
        remaining = iter(zeros)
        return tree_unflatten([next(remaining) if leaf is Tensor else leaf for leaf in self._leaves], self._structure)


def is_predictable(calls: Sequence[ModuleCall]) -> bool:
    """Whether a placeholder can replace the module: each call has a tensor, and returns the same plain values."""
    values = [list(map(_constant, tree_leaves(call.output))) for call in calls]
    return all(call.shape is not None for call in calls) and all(other == values[0] for other in values)


def _constant(leaf: Any) -> Any:
    """The class Tensor for a tensor, the leaf itself if it is a plain value, and otherwise None."""
    if isinstance(leaf, Tensor):
        return Tensor
    return leaf if isinstance(leaf, int | float | str) else None


def _output_rules(calls: Sequence[ModuleCall]) -> tuple[tuple[AxisRule, ...] | None, ...]:
    """The axis rules of each tensor that the first call returned; None if the calls do not determine them."""
    if not calls:
        return (None,)
    similar = [call for call in calls if len(call.leaves) == len(calls[0].leaves)]
    pairs = [(call.shape, call) for call in similar if call.shape is not None]
    return tuple(
        axis_rules([shape for shape, _ in pairs], [tuple(call.leaves[i].shape) for _, call in pairs])
        for i in range(len(calls[0].leaves))
    )


def _zeros(x: Tensor, rules: tuple[AxisRule, ...] | None) -> Tensor:
    """A new tensor, never `x` itself, because later operations may write to it."""
    if rules is None:
        return torch.zeros_like(x)
    known = all(rule.axis is None or rule.axis < x.ndim for rule in rules)
    shape = [rule.length(x.shape) for rule in rules] if known else [-1]
    if min(shape, default=0) < 0:
        raise ContractError(f"a placeholder for an unused module was called with a tensor {tuple(x.shape)}")
    return x.new_zeros(shape)


def axis_rules(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> tuple[AxisRule, ...] | None:
    """A rule for each output axis that holds for all pairs of input and output shapes. None if they have no such rules.

    Shapes on each side must have the same rank.
    """
    if len({len(shape) for shape in outputs}) != 1 or len({len(shape) for shape in inputs}) != 1:
        return None
    rules = [_axis_rule(inputs, [shape[axis] for shape in outputs], axis) for axis in range(len(outputs[0]))]
    return None if None in rules else tuple(rule for rule in rules if rule is not None)


def _axis_rule(inputs: Sequence[Shape], lengths: Sequence[int], axis: int) -> AxisRule | None:
    """The rule for an output axis. The input axis of the same index is tried first, for the batch and the channels.

    Rules without an offset precede others: two sizes fit a line for any input axis, such as the width for the height.
    """
    if axis < len(inputs[0]) and [shape[axis] for shape in inputs] == list(lengths):
        return AxisRule(axis)
    if len(set(lengths)) == 1:
        return AxisRule(None, plus=lengths[0])
    order = sorted(range(len(inputs[0])), key=lambda other: other != axis)
    rules = [rule for other in order if (rule := _linear_rule([shape[other] for shape in inputs], lengths, other))]
    return min(rules, key=lambda rule: not 0 <= rule.plus < rule.divided_by, default=None)


def _linear_rule(inputs: Sequence[int], lengths: Sequence[int], axis: int) -> AxisRule | None:
    pairs = list(zip(inputs, lengths, strict=True))
    if all(side and length % side == 0 for side, length in pairs):
        times = {length // side for side, length in pairs}
        if len(times) == 1:
            return AxisRule(axis, times.pop())
    divided_by = round((max(inputs) - min(inputs)) / (max(lengths) - min(lengths)))
    if not divided_by:
        return None
    least = max(length * divided_by - side for side, length in pairs)
    most = min(length * divided_by - side for side, length in pairs) + divided_by - 1
    # padded convolutions round up, patches round down
    plus = next((plus for plus in (divided_by - 1, 0, most) if least <= plus <= most), None)
    if plus is None or plus < -MOST_REMOVED * divided_by:
        return None
    return AxisRule(axis, 1, plus, divided_by)
