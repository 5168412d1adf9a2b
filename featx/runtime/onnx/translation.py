"""Translation of a captured program to an ONNX model."""

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
    """The ONNX model (onnx.ModelProto) of a program.

    Args:
        program: The program.
        outputs: Names of its outputs, in order.
        shape: Shape of the images; None for axes of variable length.

    Raises:
        UntranslatedError: An operation has no translation.
    """
    from onnx import helper

    graph = _Translator(program).translate(outputs)
    axes: list[Any] = [AXES[axis] if length is None else length for axis, length in enumerate(shape)]
    images = helper.make_tensor_value_info(IMAGES, element_type(program.dtypes[TracedValue(-1)]), axes)
    returned = [
        helper.make_tensor_value_info(name, element_type(torch.float32), _output_axes(program, traced, name, shape))
        for name, traced in zip(outputs, program.returned, strict=True)
    ]
    proto = helper.make_graph(graph.nodes, "featx", [images], returned)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=IR_VERSION, producer_name="featx")
    for name, tensor in graph.initializers.items():  # added last, because the calls above copy their arguments
        data_type, content = element_type(tensor.dtype), tensor.numpy().tobytes()
        model.graph.initializer.add(name=name, dims=tensor.shape, data_type=data_type, raw_data=content)
    return model


def _output_axes(program: Program, traced: Name, name: str, shape: Sequence[int | None]) -> list[int | str]:
    """Lengths of an output's axes, and names for those that depend on the images."""
    if not isinstance(traced, TracedValue):
        return list(program.constants[traced].shape)
    lengths = program.axes[traced]
    if None not in shape:
        return [shape[0] or 0, *(first for first, _ in lengths[1:])]
    names = ("batch", *(f"{name}_{axis}" for axis in AXES[1:]))
    return [first if first == second else names[axis] for axis, (first, second) in enumerate(lengths)]


class _Translator:
    """Adds the calls of a program to a graph."""

    def __init__(self, program: Program) -> None:
        self.program, self.graph = program, OnnxGraph()
        self._names: dict[Name, str] = {TracedValue(-1): IMAGES}

    def translate(self, outputs: Sequence[str]) -> OnnxGraph:
        for call in self.program.calls:
            self._add(call)
        self._name_outputs(outputs)
        return self.graph

    def _add(self, call: Call) -> None:
        name = call.operation.overloadpacket.__name__
        translate = TRANSLATIONS.get(name if name in TRANSLATIONS else name.removesuffix("_"))
        self.graph.scope = self._scope(call)
        several = TracedValue(call.number) not in self.program.axes
        results = self._results(call.number) if several else [self._value(TracedValue(call.number), "")]
        if translate is None:
            raise UntranslatedError(f"{call.operation} has no translation to ONNX")
        args, kwargs = tree_map(self._argument, _by_schema(call))
        try:
            translated = translate(self.graph, results, *args, **kwargs)
        except UntranslatedError as error:
            raise UntranslatedError(f"{call.operation}: {error} has no translation to ONNX") from error
        names = [translated] if isinstance(translated, str) else translated
        places = range(len(names)) if several else [None]
        self._names.update((TracedValue(call.number, place), name) for place, name in zip(places, names, strict=True))

    def _results(self, number: int) -> list[Value]:
        """The tensors of a call that returned several, without names."""
        results: list[Value] = []
        while TracedValue(number, len(results)) in self.program.axes:
            results.append(self._value(TracedValue(number, len(results)), ""))
        return results

    def _value(self, traced: Any, name: str) -> Value:
        return Value(name, self.program.axes[traced], self.program.dtypes[traced])

    def _scope(self, call: Call) -> str:
        """Path of the module whose parameters the call reads, or ""."""
        path = next((arg.path for arg in call.args if isinstance(arg, ModelTensor)), "")
        return path.removeprefix("extractor.").rpartition(".")[0]

    def _argument(self, recorded: Any) -> Any:
        """The value of a recorded argument in the graph."""
        if isinstance(recorded, TracedValue | ModelTensor):
            name = self._names.get(recorded)
            return self._constant(recorded) if name is None else self._value(recorded, name)
        if isinstance(recorded, SymbolicSize):
            return self.graph.length(self._names[recorded.tensor], recorded.axis)
        return self._per_image(recorded) if isinstance(recorded, PerImage) else recorded

    def _constant(self, traced: Name) -> Value:
        tensor = self.program.constants[traced]
        if isinstance(traced, TracedValue):
            name = f"computed_{traced.step}_{traced.place or 0}"
        else:
            name = traced.path.removeprefix("extractor.")
        axes = tuple((length, length) for length in tensor.shape)
        return Value(self.graph.constant(tensor, name), axes, tensor.dtype, tensor)

    def _per_image(self, number: PerImage) -> Length:
        batch = self.graph.length(IMAGES, 0)
        return batch if number.times == 1 else Length(self.graph.add("Mul", batch, self.graph.ints([number.times])))

    def _name_outputs(self, outputs: Sequence[str]) -> None:
        """Rename the returned values to the names of the outputs; values that cannot be renamed are copied."""
        from onnx import helper

        renamed: dict[str, str] = {}
        for output, traced in zip(outputs, self.program.returned, strict=True):
            name = self._names.get(traced) or self._constant(traced).name
            if name in renamed or name == IMAGES or name in self.graph.initializers:
                self.graph.nodes.append(helper.make_node("Identity", [name], [output], name=f"output/{output}"))
            else:
                renamed[name] = output
        for node in self.graph.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]


def _by_schema(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """All positional arguments of a call, with defaults, and the keyword-only arguments that were passed."""
    arguments = call.operation._schema.arguments
    ordered = [argument for argument in arguments if not argument.kwarg_only]
    passed = {**dict(zip((argument.name for argument in ordered), call.args, strict=False)), **call.kwargs}
    keyword_only = {argument.name for argument in arguments if argument.kwarg_only}
    positional = [passed.get(argument.name, argument.default_value) for argument in ordered]
    return positional, {name: value for name, value in passed.items() if name in keyword_only}
