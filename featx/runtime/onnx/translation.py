"""Programs as ONNX graphs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map

from ...tracing.program import Call, PerImage, Program
from ...tracing.symbolic_sizes import ModelTensor, Name, SymbolicSize, TracedValue
from .graph import IR_VERSION, OPSET, Length, OnnxGraph, Value, element_type
from .operations import OPERATIONS, UntranslatedError
from .shapes import SHAPES

IMAGES = "images"
TRANSLATIONS = {**OPERATIONS, **SHAPES}
AXES = ("batch", "channels", "height", "width")


def onnx_model(program: Program, outputs: Sequence[str], shape: Sequence[int | None]) -> Any:
    """The ONNX model of a program.

    Args:
        program: what to translate.
        outputs: names of what it returns, in order.
        shape: of the images; None for axes of any length.

    Raises:
        UntranslatedError: an operation of it has no translation.
    """
    from onnx import helper

    graph = _Translator(program).translated(outputs)
    axes: list[Any] = [AXES[axis] if length is None else length for axis, length in enumerate(shape)]
    images = helper.make_tensor_value_info(IMAGES, element_type(program.dtypes[TracedValue(-1)]), axes)
    returned = [
        helper.make_tensor_value_info(name, element_type(torch.float32), _output_axes(program, made, name, shape))
        for name, made in zip(outputs, program.returned, strict=True)
    ]
    made = helper.make_graph(graph.nodes, "featx", [images], returned)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="featx")
    for name, tensor in graph.initializers.items():  # added here, because each of the calls above copies what it gets
        kind, content = element_type(tensor.dtype), tensor.numpy().tobytes()
        model.graph.initializer.add(name=name, dims=tensor.shape, data_type=kind, raw_data=content)
    return model


def _output_axes(program: Program, made: Name, name: str, shape: Sequence[int | None]) -> list[int | str]:
    """Lengths of an output's axes, and names for those that depend on the images."""
    if not isinstance(made, TracedValue):
        return list(program.constants[made].shape)
    lengths = program.axes[made]
    if None not in shape:
        return [shape[0] or 0, *(first for first, _ in lengths[1:])]
    names = ("batch", *(f"{name}_{axis}" for axis in AXES[1:]))
    return [first if first == again else names[axis] for axis, (first, again) in enumerate(lengths)]


class _Translator:
    """Adds the calls of a program to a graph."""

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, OnnxGraph()
        self._names: dict[Name, str] = {TracedValue(-1): IMAGES}

    def translated(self, outputs: Sequence[str]) -> OnnxGraph:
        for call in self.program.calls:
            self._add(call)
        self._name_outputs(outputs)
        return self.graph

    def _add(self, call: Call) -> None:
        name = call.operation.overloadpacket.__name__
        translate = TRANSLATIONS.get(name if name in TRANSLATIONS else name.removesuffix("_"))
        self.graph.scope = self._scope(call)
        several = TracedValue(call.number) not in self.program.axes
        made = self._made(call.number) if several else [self._value(TracedValue(call.number), "")]
        if translate is None:
            raise UntranslatedError(f"{call.operation} has no translation to ONNX")
        args, kwargs = tree_map(self._filled, _by_schema(call))
        try:
            found = translate(self.graph, made, *args, **kwargs)
        except UntranslatedError as error:
            raise UntranslatedError(f"{call.operation}: {error} has no translation to ONNX") from error
        names = [found] if isinstance(found, str) else found
        self._names.update(
            (TracedValue(call.number, place if several else None), one) for place, one in enumerate(names)
        )

    def _made(self, number: int) -> list[Value]:
        made: list[Value] = []
        while TracedValue(number, len(made)) in self.program.axes:
            made.append(self._value(TracedValue(number, len(made)), ""))
        return made

    def _value(self, made: Any, name: str) -> Value:
        return Value(name, self.program.axes[made], self.program.dtypes[made])

    def _scope(self, call: Call) -> str:
        """The path of the module whose parameters the call reads."""
        own = next((one.path for one in call.args if isinstance(one, ModelTensor)), "")
        return own.removeprefix("extractor.").rpartition(".")[0]

    def _filled(self, given: Any) -> Any:
        """The value of an argument."""
        if isinstance(given, TracedValue | ModelTensor):
            name = self._names.get(given)
            return self._constant(given) if name is None else self._value(given, name)
        if isinstance(given, SymbolicSize):
            return self.graph.length(self._names[given.tensor], given.axis)
        return self._per_image(given) if isinstance(given, PerImage) else given

    def _constant(self, given: Name) -> Value:
        tensor = self.program.constants[given]
        if isinstance(given, TracedValue):
            named = f"computed_{given.step}_{given.place or 0}"
        else:
            named = given.path.removeprefix("extractor.")
        name = self.graph.constant(tensor, named)
        return Value(name, tuple((length, length) for length in tensor.shape), tensor.dtype, tensor)

    def _per_image(self, given: PerImage) -> Length:
        images = self.graph.length(IMAGES, 0)
        return images if given.times == 1 else Length(self.graph.add("Mul", images, self.graph.ints([given.times])))

    def _name_outputs(self, outputs: Sequence[str]) -> None:
        """Have what the program returns called so."""
        from onnx import helper

        renamed: dict[str, str] = {}
        for output, made in zip(outputs, self.program.returned, strict=True):
            own = self._names.get(made) or self._constant(made).name
            if own in renamed or own == IMAGES or own in self.graph.initializers:
                self.graph.nodes.append(helper.make_node("Identity", [own], [output], name=f"output/{output}"))
            else:
                renamed[own] = output
        for node in self.graph.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]


def _by_schema(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """All arguments of a call: in their order, and by name those that can only be given so and were."""
    arguments = call.operation._schema.arguments
    ordered = [argument for argument in arguments if not argument.kwarg_only]
    given = {**dict(zip((argument.name for argument in ordered), call.args, strict=False)), **call.kwargs}
    positional = [given.get(argument.name, argument.default_value) for argument in ordered]
    return positional, {
        argument.name: given[argument.name] for argument in arguments if argument.kwarg_only and argument.name in given
    }
