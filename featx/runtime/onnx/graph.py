"""An ONNX graph that grows by one operation of a program at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...tracing.program import Axes

OPSET, IR_VERSION = 20, 9  # of 2023: what ONNX Runtime 1.17 and OpenVINO 2025 read, and the first with Gelu
# Elements up to which equal constants are stored once: axes, sizes, scalars.
SMALL = 16


class Length(str):
    """The name of a value with one element: the length of an axis, which only a forward knows."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph. axes: its lengths, as the program saw them. tensor: its content, if that is constant."""

    name: str
    axes: Axes
    dtype: torch.dtype
    tensor: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes in the first recording."""
        return tuple(first for first, _ in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)


Operand = Value | str | None
Target = Sequence[int | Length]


@dataclass
class OnnxGraph:
    """Nodes and initializers. scope: the module whose operation is being added; nodes are named for it."""

    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Tensor] = field(default_factory=dict)
    scope: str = ""
    _small: dict[Any, str] = field(default_factory=dict)

    def add(self, kind: str, *operands: Operand, outputs: int = 1, **attributes: Any) -> str:
        """The name of what a new node returns; of its first result, where it has several (see `names`)."""
        return self.names(kind, *operands, outputs=outputs, **attributes)[0]

    def names(self, kind: str, *operands: Operand, outputs: int, **attributes: Any) -> list[str]:
        """The names of all that a new node returns."""
        from onnx import helper

        name = f"{self.scope}/{kind}_{len(self.nodes)}" if self.scope else f"{kind}_{len(self.nodes)}"
        given = [one.name if isinstance(one, Value) else one or "" for one in operands]
        while given and not given[-1]:
            given.pop()  # ONNX Runtime crashes on some operations with an empty one at the end
        made = [f"{name}:{place}" if outputs > 1 else name for place in range(outputs)]
        stated = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(kind, given, made, name=name, **stated))
        return made

    def constant(self, tensor: Tensor, name: str | None = None) -> str:
        """The name of an initializer with this content."""
        key = (tensor.dtype, tuple(tensor.shape), tuple(tensor.flatten().tolist())) if tensor.numel() <= SMALL else None
        if name is None and key in self._small:
            return self._small[key]
        chosen = name or f"constant_{len(self.initializers)}"
        if key is not None and name is None:
            self._small[key] = chosen
        if chosen not in self.initializers:
            self.initializers[chosen] = tensor.detach().contiguous()
        return chosen

    def ints(self, values: Target) -> str:
        """A vector of int64, computed where lengths in it are."""
        if not any(isinstance(value, Length) for value in values):
            return self.constant(torch.tensor([int(value) for value in values]))
        parts = [value if isinstance(value, Length) else self.ints([value]) for value in values]
        return self.add("Concat", *parts, axis=0)

    def scalar(self, value: complex, dtype: torch.dtype) -> str:
        return self.constant(torch.tensor(value, dtype=dtype))

    def length(self, x: Operand, axis: int) -> Length:
        """The length of an axis of a tensor, as a vector of one element."""
        return Length(self.add("Shape", x, start=axis, end=axis + 1))

    def cast(self, x: Operand, dtype: torch.dtype) -> str:
        return self.add("Cast", x, to=element_type(dtype))


def element_type(dtype: torch.dtype) -> int:
    """ONNX's number of a dtype."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
