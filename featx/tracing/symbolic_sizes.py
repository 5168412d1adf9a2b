"""Symbolic references to recorded tensors and to the lengths of their axes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .third_party_errors import passed_on


@dataclass(frozen=True, slots=True)
class TracedValue:
    """A tensor that a step returned, at `place` if it returned several. Step -1 stands for the images."""

    step: int
    place: int | None = None


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor attribute of the model."""

    path: str


Name = TracedValue | ModelTensor


@dataclass(frozen=True, slots=True)
class SymbolicSize:
    """The size of an axis of a traced tensor, and its `length` in the recording."""

    tensor: TracedValue
    axis: int
    length: int = field(default=0, compare=False)


class TracedSize(int):
    """The length of an axis as an int that reports when code branches on it or computes with it.

    Attributes:
        of: the axis; None for the batch size.
        on_branch: called before a comparison, a hash or a conversion to bool.
        on_arithmetic: called before arithmetic.
    """

    of: SymbolicSize | None
    on_branch: Callable[[], None]
    on_arithmetic: Callable[[], None]

    @classmethod
    def of_axis(
        cls, length: int, of: SymbolicSize | None, on_branch: Callable[[], None], on_arithmetic: Callable[[], None]
    ) -> "TracedSize":
        size = cls(length)
        size.of, size.on_branch, size.on_arithmetic = of, on_branch, on_arithmetic
        return size


BRANCHING = ("bool", "eq", "ne", "lt", "le", "gt", "ge", "hash")
ARITHMETIC = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("divmod", "rdivmod", "pow", "rpow", "neg", "pos", "abs", "lshift", "rshift", "and", "or", "xor", "invert"),
    *("int", "float", "round", "ceil", "floor", "trunc"),
)


def _reporting(name: str, callback: str) -> Callable[..., Any]:
    def method(self: TracedSize, *others: Any) -> Any:
        getattr(self, callback)()
        return passed_on(getattr(int, name), self, *others)

    return method


for _callback, _names in (("on_branch", BRANCHING), ("on_arithmetic", ARITHMETIC)):
    for _name in _names:
        setattr(TracedSize, f"__{_name}__", _reporting(f"__{_name}__", _callback))
