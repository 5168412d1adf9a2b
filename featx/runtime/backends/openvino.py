"""The `openvino` runtime, which executes ONNX files on the CPU."""

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

from ...errors import CheckpointError, in_short
from ..onnx.translation import IMAGES
from .engine import COMPILED, FileEngine

PRECISIONS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
LAYERS = ("Convolution", "GroupConvolution", "MatMul")  # types of operations with weights
VALUES = ("Const", "Parameter", "Result")  # types of operations that compute nothing


def computes_bfloat16() -> bool:
    """Whether OpenVINO supports bfloat16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(FileEngine):
    """A graph compiled by OpenVINO, which uses as many threads as torch does when the graph is compiled.

    It is compiled for the shape of the example, which is faster, and once more for all other shapes when images of one
    arrive. Each calling thread has inference requests of its own.
    """

    runtime = "openvino"
    dtypes = (torch.float32, torch.bfloat16, torch.int8)
    hides_nan = True
    is_shape_specific = True

    def keep_compiled(self, folder: Path) -> None:
        (folder / COMPILED).write_bytes(self._compiled.export_model().getvalue())

    def load(self, streams: int = 1) -> None:
        import openvino

        if self.description.computes not in PRECISIONS:
            raise CheckpointError(
                f"{self.path} computes in {self.description.computes}: OpenVINO in {', '.join(PRECISIONS)}"
            )
        self._settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.description.computes],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **({"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}),
        }
        self._core: Any = openvino.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # truncation of a mapped file would end the process
        self._graph: Any = None
        self._compiled_dynamic: Any = None
        self._lock = threading.Lock()
        self._requests = threading.local()
        blob = None if self._folder is None or streams > 1 else self._folder.path / COMPILED
        with self._converted_errors():
            if blob is not None and blob.is_file():
                self._compiled: Any = self._core.import_model(blob.read_bytes(), "CPU", self._settings)
            else:
                self._graph = self._core.read_model(self.path)
                static = self._graph.clone()
                static.reshape(list(self.description.guard.shape))
                self._compiled = self._compile(static)
        self._require_names(
            _names(self._compiled.inputs, [IMAGES]), _names(self._compiled.outputs, self.description.output_names())
        )

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        is_static = tuple(x.shape) == self.description.guard.shape
        images = x.detach().contiguous().numpy()
        with self._converted_errors():
            outputs = self._request(is_static).infer([images], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array.copy()) for array in outputs.values()]  # the next call overwrites them

    def _request(self, is_static: bool) -> Any:
        """This thread's inference request, for the shape of the example or for other shapes."""
        requests: Any = vars(self._requests)
        if is_static not in requests:
            requests[is_static] = (self._compiled if is_static else self._compile_dynamic()).create_infer_request()
        return requests[is_static]

    def _compile_dynamic(self) -> Any:
        """The graph for other shapes than the example's, compiled at the first call."""
        with self._lock:
            if self._compiled_dynamic is None:
                # with a compiled graph from the cache, the file is in the engine's own folder, and has not changed
                self._compiled_dynamic = self._compile(self._graph or self._core.read_model(self.path))
                self._graph = None
            return self._compiled_dynamic

    def _compile(self, graph: Any) -> Any:
        if self.description.computes == "bfloat16" and self.description.in_float32:
            graph = _mixed(self._core, graph, self.description.in_float32)
        return self._core.compile_model(graph, "CPU", self._settings)

    @contextmanager
    def _converted_errors(self) -> Iterator[None]:
        """Convert exceptions of OpenVINO to CheckpointError within a `with` block."""
        try:
            yield
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.path}: {in_short(error)}") from error


def _names(ports: Sequence[Any], expected: Sequence[str]) -> list[str]:
    """A name of each port, which may have several: the expected one if it is among them, else any."""
    expected = expected if len(ports) == len(expected) else [""] * len(ports)
    return [name if name in port.names else port.any_name for port, name in zip(ports, expected, strict=True)]


def _mixed(core: Any, graph: Any, in_float32: Collection[str]) -> Any:
    """A copy of a graph in which the layers at these paths, and all operations before other layers, are in float32.

    Operations with the attribute `precise` keep their precision. OpenVINO's Python interface cannot set it, so the
    graph is written to a file, edited there and read again.
    """
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(graph, cf=True)
    lowered = _lowered(graph, in_float32)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        openvino.serialize(graph, path)
        tree = ElementTree.parse(path)
        for operation in tree.iterfind("layers/layer"):
            if operation.get("type") not in VALUES and operation.get("name") not in lowered:
                information = operation.find("rt_info")
                if information is None:
                    information = ElementTree.SubElement(operation, "rt_info")
                ElementTree.SubElement(information, "attribute", name="precise", version="0")
        tree.write(path)
        return core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _lowered(graph: Any, in_float32: Collection[str]) -> set[str]:
    """Names of the layers at other paths, and of all operations that depend on their outputs."""
    lowered: set[str] = set()
    for node in graph.get_ordered_ops():
        name, is_layer = node.get_friendly_name(), node.get_type_name() in LAYERS
        inputs = {value.get_source_output().get_node().get_friendly_name() for value in node.inputs()}
        if (is_layer and name.partition("/")[0] not in in_float32) or not lowered.isdisjoint(inputs):
            lowered.add(name)
    return lowered
