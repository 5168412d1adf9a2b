"""Symbolic references to recorded tensors and to the lengths of their axes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .third_party_errors import passed_on


@dataclass(frozen=True, slots=True)
class TracedValue:
    """A tensor that a step returned, at that place if it returned several; -1 are the images."""

    step: int
    place: int | None = None


@dataclass(frozen=True, slots=True)
class ModelTensor:
    """A tensor of the model, by its path."""

    path: str


Name = TracedValue | ModelTensor


@dataclass(frozen=True, slots=True)
class SymbolicSize:
    """The length of an axis of a tensor, and what it was when this was recorded."""

    tensor: TracedValue
    axis: int
    length: int = field(default=0, compare=False)


class TracedSize(int):
    """The length of an axis, which tells when code decides on it or computes with it.

    of: which axis it is; None if nobody needs to know.
    """

    of: SymbolicSize | None
    decided: Callable[[], None]
    computed: Callable[[], None]

    @classmethod
    def of_axis(
        cls, length: int, of: SymbolicSize | None, decided: Callable[[], None], computed: Callable[[], None]
    ) -> "TracedSize":
        side = cls(length)
        side.of, side.decided, side.computed = of, decided, computed
        return side


DECIDING = ("bool", "eq", "ne", "lt", "le", "gt", "ge", "hash")
COMPUTING = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("divmod", "rdivmod", "pow", "rpow", "neg", "pos", "abs", "lshift", "rshift", "and", "or", "xor", "invert"),
    *("int", "float", "round", "ceil", "floor", "trunc"),
)


def _telling(name: str, whom: str) -> Callable[..., Any]:
    def method(self: TracedSize, *others: Any) -> Any:
        getattr(self, whom)()
        return passed_on(getattr(int, name), self, *others)

    return method


for _whom, _names in (("decided", DECIDING), ("computed", COMPUTING)):
    for _name in _names:
        setattr(TracedSize, f"__{_name}__", _telling(f"__{_name}__", _whom))
