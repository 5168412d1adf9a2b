"""Which images a captured graph is right for, as data that can be stored in a file."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

# What operations on any number of lengths do, and on so many; the names are sympy's and torch's.
MANY: dict[str, Callable[..., int]] = {
    "Add": lambda *values: sum(values),
    "Mul": lambda *values: prod(values),
    "Max": lambda *values: max(values),
    "Min": lambda *values: min(values),
    "And": lambda *values: all(values),
    "Or": lambda *values: any(values),
}
TWO: dict[str, Callable[[int, int], int]] = {
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "Equality": operator.eq,
    "Unequality": operator.ne,
    "LessThan": operator.le,
    "StrictLessThan": operator.lt,
    "GreaterThan": operator.ge,
    "StrictGreaterThan": operator.gt,
}
OPERATIONS: dict[str, Callable[..., int]] = {**MANY, **TWO}

DEEPEST = 64  # of the conditions in a condition
LARGEST = 2**63  # of the numbers in one
# A condition on lengths: a number, the name of a length, or an operation's name and conditions. It is data, not code.
Tree = int | str | Sequence[Any]


class InexpressibleError(Exception):
    """A condition that is made of other operations than these."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A free axis: the name of its length, and the smallest and largest it may be; None has no bound."""

    name: str
    least: int
    most: int | None

    def takes(self, length: int) -> bool:
        return length >= self.least and (self.most is None or length <= self.most)


@dataclass(frozen=True, slots=True)
class Taken:
    """The images a graph is right for.

    shape: (N, C, H, W) it was captured with. free: the axes that may have another length. conditions: what must hold of
    the lengths besides.
    """

    shape: tuple[int, ...]
    free: dict[int, Axis]
    conditions: tuple[Tree, ...]

    def __contains__(self, shape: Sequence[int]) -> bool:
        if any(shape[axis] != self.shape[axis] for axis in range(4) if axis not in self.free):
            return False
        # a graph is captured for batches of two or more; nothing in it depends on how many there are
        lengths = {axis: max(shape[axis], 2) if axis == 0 else shape[axis] for axis in self.free}
        if not all(axis.takes(lengths[position]) for position, axis in self.free.items()):
            return False
        named = {axis.name: lengths[position] for position, axis in self.free.items()}
        alike = all(named[axis.name] == lengths[position] for position, axis in self.free.items())
        try:
            return alike and all(bool(value(condition, named)) for condition in self.conditions)
        except ZeroDivisionError:
            return False

    def __str__(self) -> str:
        batch = "any batch of" if 0 in self.free else f"batches of {self.shape[0]}"
        size = "" if 2 in self.free and 3 in self.free else f" of {self.shape[2]}x{self.shape[3]} pixels"
        return f"{batch} images{size or ' of most sizes'}"


def taken(program: Any, shape: Sequence[int]) -> Taken:
    """What images an ExportedProgram is right for; InexpressibleError if that cannot be stored."""
    lengths = next(node.meta["val"].shape for node in program.graph.nodes if node.name == "x")
    symbolic = {axis: length for axis, length in enumerate(lengths) if not isinstance(length, int)}
    free = {axis: _axis(length, program.range_constraints) for axis, length in symbolic.items()}
    guards = next(iter(symbolic.values())).node.shape_env.guards if symbolic else ()
    return Taken(tuple(shape), free, tuple(tree(guard.expr) for guard in guards))


def _axis(length: Any, ranges: Any) -> Axis:
    symbol = length.node.expr
    if not symbol.is_Symbol:
        raise InexpressibleError(f"an axis that should be free has the length {symbol}")
    bounds = ranges[symbol]
    return Axis(f"{symbol}", int(bounds.lower), int(bounds.upper) if bounds.upper.is_Integer else None)


def tree(expression: Any) -> Tree:
    """A sympy expression as data."""
    if expression.is_Symbol:
        return f"{expression}"
    if expression.is_Integer:
        return int(expression)
    if type(expression).__name__ not in OPERATIONS:
        raise InexpressibleError(f"a condition on lengths cannot be stored: {expression}")
    return [type(expression).__name__, *(tree(argument) for argument in expression.args)]


def value(condition: Tree, lengths: dict[str, int]) -> int:
    """What a condition comes to for these lengths by name."""
    if isinstance(condition, int):
        return condition
    if isinstance(condition, str):
        return lengths[condition]
    name, *arguments = condition
    return OPERATIONS[name](*(value(argument, lengths) for argument in arguments))


def is_condition(condition: object, names: set[str], deepest: int = DEEPEST) -> bool:
    """Whether something that was read from a file is a condition on lengths of these names."""
    if type(condition) is int:
        return abs(condition) < LARGEST
    if isinstance(condition, str):
        return condition in names
    if not isinstance(condition, list) or not condition or not isinstance(condition[0], str):
        return False
    name, *parts = condition
    fits = len(parts) == 2 if name in TWO else name in MANY and bool(parts)
    return fits and deepest > 0 and all(is_condition(part, names, deepest - 1) for part in parts)
