"""The `openvino` runtime: graphs in ONNX files on the CPU."""

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
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
VALUES = ("Const", "Parameter", "Result")


def computes_bfloat16() -> bool:
    """Whether OpenVINO finds a processor that does."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(FileEngine):
    """A graph compiled by OpenVINO, with as many threads as torch has when it is made, and requests of each thread.

    It is compiled for the shape of the example, which is faster, and once more for all other shapes when one comes.
    """

    runtime = "openvino"
    hides_nan = True
    is_of_shape = True

    def keep_compiled(self, folder: Path) -> None:
        (folder / COMPILED).write_bytes(self._compiled.export_model().getvalue())

    def load(self, streams: int = 1) -> None:
        import openvino

        if self.said.computes not in PRECISIONS:
            raise CheckpointError(f"{self.path} computes in {self.said.computes}: OpenVINO in {', '.join(PRECISIONS)}")
        self._settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.said.computes],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **({"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}),
        }
        self._core: Any = openvino.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # a file that is cut short while it is mapped ends the process
        self._graph: Any = None
        self._for_others: Any = None
        self._lock = threading.Lock()
        self._requests = threading.local()
        kept = None if self._folder is None or streams > 1 else self._folder.path / COMPILED
        with self._refusals():
            if kept is not None and kept.is_file():
                self._compiled: Any = self._core.import_model(kept.read_bytes(), "CPU", self._settings)
            else:
                self._graph = self._core.read_model(self.path)
                one_shape = self._graph.clone()
                one_shape.reshape(list(self.said.guard.shape))
                self._compiled = self._compile(one_shape)
        self._require_names(
            _names(self._compiled.inputs, [IMAGES]), _names(self._compiled.outputs, self.said.tensors())
        )

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        is_usual = tuple(x.shape) == self.said.guard.shape
        images = x.detach().contiguous().numpy()
        with self._refusals():
            found = self._request(is_usual).infer([images], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array.copy()) for array in found.values()]  # the request writes over them

    def _request(self, is_usual: bool) -> Any:
        """This thread's own request, for the shape of the example or for others."""
        own: Any = vars(self._requests)
        if is_usual not in own:
            own[is_usual] = (self._compiled if is_usual else self._compiled_for_others()).create_infer_request()
        return own[is_usual]

    def _compiled_for_others(self) -> Any:
        with self._lock:
            if self._for_others is None:
                # read anew where a compiled one was kept: in a folder that is this engine's own
                self._for_others = self._compile(self._graph or self._core.read_model(self.path))
                self._graph = None
            return self._for_others

    def _compile(self, graph: Any) -> Any:
        if self.said.computes == "bfloat16" and self.said.in_float32:
            graph = _mixed(self._core, graph, self.said.in_float32)
        return self._core.compile_model(graph, "CPU", self._settings)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Within the block what OpenVINO raises is a CheckpointError."""
        try:
            yield
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.path}: {in_short(error)}") from error


def _names(ports: Sequence[Any], expected: Sequence[str]) -> list[str]:
    """A name of each port, which may have several: the expected one, if it is among them."""
    fits = len(ports) == len(expected)
    wanted = expected if fits else [""] * len(ports)
    return [name if name in port.names else port.any_name for port, name in zip(ports, wanted, strict=True)]


def _mixed(core: Any, graph: Any, in_float32: Collection[str]) -> Any:
    """A copy of a graph that computes in float32 up to the first layers that are not at these paths.

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
    """Names of the layers at other paths, and of all operations that depend on them."""
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        name, is_layer = node.get_friendly_name(), node.get_type_name() in LAYERS
        inputs = {value.get_source_output().get_node().get_friendly_name() for value in node.inputs()}
        if (is_layer and name.partition("/")[0] not in in_float32) or not found.isdisjoint(inputs):
            found.add(name)
    return found
