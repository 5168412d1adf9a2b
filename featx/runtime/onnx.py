"""ONNX: files of graphs, with a description in their metadata, and ONNX Runtime to run them."""

import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..weights.protobuf import BYTES, VARINT, Data, Span, fields
from .description import KEY, Description, from_json, to_json
from .engine import FileEngine
from .graph import Graph

AXES = {0: "batch", 2: "height", 3: "width"}
LARGEST = 1 << 30  # bytes of weights in one file: protobuf ends at twice that
# Fields of ONNX's ModelProto by number, and how they are written.
MODEL = {1: (VARINT,), 5: (VARINT,), **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), (BYTES,))}
METADATA, ENTRY = 14, {1: (BYTES,), 2: (BYTES,)}


def write_onnx(graph: Graph, path: Path) -> None:
    """Write the graph, its input named `images`, its outputs as the description says, with weights beside if large."""
    import onnx

    nbytes = sum(tensor.nbytes for tensor in graph.program.state_dict.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        made: Any = torch.onnx.export(
            graph.program,
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=graph.said.tensors(),
        )
        made.save(path, external_data=nbytes > LARGEST)
    model = onnx.load(path, load_external_data=False)
    _name_axes(model.graph, graph.said)
    onnx.save_model(model, path)


def describe_onnx(path: Path, said: Description) -> None:
    """Put a description into the metadata of the file, in place of any that is there."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, KEY: to_json(said)})
    onnx.save_model(model, path)


def _name_axes(graph: Any, said: Description) -> None:
    """Name free axes for what they are, wherever the exporter wrote symbols of its own."""
    assert said.taken is not None
    names = {axis.name: AXES[position] for position, axis in reversed(said.taken.free.items())}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), axis.dim_param)


def read_onnx(path: Path) -> Description:
    """The description in a file that `featx.export` wrote; nothing else of the file is looked at.

    Raises CheckpointError if it has none.
    """
    with path.open("rb") as file:
        data = Data(file)
        if not data.size:
            raise CheckpointError(f"{path} is empty: write it again with featx.export")
        try:
            found = [_entry(data, span) for number, span in fields(data, (0, data.size), MODEL) if number == METADATA]
        except CheckpointError as error:
            raise CheckpointError(f"{path} is no whole ONNX file: {error}") from error
    texts = [value for key, value in found if key == KEY.encode()]
    if not texts:
        raise CheckpointError(f"{path} was not written by featx.export: it has no description of levels")
    return from_json(texts[-1], path)


def _entry(data: Data, span: Span) -> tuple[bytes, bytes]:
    parts = {number: data.span(start, end) for number, (start, end) in fields(data, span, ENTRY)}
    return parts.get(1, b""), parts.get(2, b"")


class OnnxRuntimeEngine(FileEngine):
    """A session of ONNX Runtime on the CPU, with as many threads as torch has when it is made."""

    runtime = "onnxruntime"

    def load(self) -> None:
        import onnxruntime

        state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised, too
        refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except (*refusals, state.NoSuchFile, state.RuntimeException, RuntimeError) as error:
            raise CheckpointError(f"ONNX Runtime cannot run {self.path}: {error}") from error

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        arrays: Any = self._session.run(None, {"images": x.detach().contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]
