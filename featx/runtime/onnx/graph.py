"""Builder of an ONNX graph, to which the translation adds nodes and constants."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...tracing.program import Axes

OPSET, IR_VERSION = 20, 9  # of 2023; the first opset with Gelu, supported since ONNX Runtime 1.17 and OpenVINO 2025
SMALL = 16  # elements; equal constants up to this size, such as axes, sizes and scalars, are stored once


class Length(str):
    """Name of a value with one element: the length of an axis that varies between forwards."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph.

    Attributes:
        name: Its name in the graph.
        axes: The lengths of its axes in both recordings of the program.
        dtype: Its dtype.
        tensor: Its content if it is constant.
    """

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
    """Nodes and initializers; `scope`, the path of a module, is the prefix of the names of new nodes."""

    nodes: list[Any] = field(default_factory=list)
    initializers: dict[str, Tensor] = field(default_factory=dict)
    scope: str = ""
    _small: dict[Any, str] = field(default_factory=dict)

    def add(self, op: str, *operands: Operand, outputs: int = 1, **attributes: Any) -> str:
        """Add a node, and return the name of its first output."""
        return self.names(op, *operands, outputs=outputs, **attributes)[0]

    def names(self, op: str, *operands: Operand, outputs: int, **attributes: Any) -> list[str]:
        """Add a node, and return the names of all its outputs; attributes that are None are omitted."""
        from onnx import helper

        name = f"{self.scope}/{op}_{len(self.nodes)}" if self.scope else f"{op}_{len(self.nodes)}"
        inputs = [operand.name if isinstance(operand, Value) else operand or "" for operand in operands]
        while inputs and not inputs[-1]:
            inputs.pop()  # ONNX Runtime crashes on some operations with an empty last input
        names = [f"{name}:{index}" if outputs > 1 else name for index in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, inputs, names, name=name, **attributes))
        return names

    def constant(self, tensor: Tensor, name: str | None = None) -> str:
        """Name of an initializer with this content; small unnamed ones are shared."""
        key = (tensor.dtype, tuple(tensor.shape), tuple(tensor.flatten().tolist())) if tensor.numel() <= SMALL else None
        if name is None and key in self._small:
            return self._small[key]
        unique = name or f"constant_{len(self.initializers)}"
        if key is not None and name is None:
            self._small[key] = unique
        if unique not in self.initializers:
            self.initializers[unique] = tensor.detach().contiguous()
        return unique

    def ints(self, values: Target) -> str:
        """Name of a vector of int64: a constant, or the concatenation of its elements if some are a Length."""
        if not any(isinstance(value, Length) for value in values):
            return self.constant(torch.tensor([int(value) for value in values]))
        parts = [value if isinstance(value, Length) else self.ints([value]) for value in values]
        return self.add("Concat", *parts, axis=0)

    def scalar(self, value: complex, dtype: torch.dtype) -> str:
        """Name of a constant without axes."""
        return self.constant(torch.tensor(value, dtype=dtype))

    def length(self, x: Operand, axis: int) -> Length:
        """The length of an axis of a tensor, as a vector of one element."""
        return Length(self.add("Shape", x, start=axis, end=axis + 1))

    def cast(self, x: Operand, dtype: torch.dtype) -> str:
        """Name of the tensor, converted to the dtype."""
        return self.add("Cast", x, to=element_type(dtype))


def element_type(dtype: torch.dtype) -> int:
    """The TensorProto.DataType of a dtype."""
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
