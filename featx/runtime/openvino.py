"""The `openvino` runtime: graphs in ONNX files on the CPU."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, in_short
from .engine import COMPILED, FileEngine
from .onnx_program import IMAGES

PRECISIONS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}


def computes_bfloat16() -> bool:
    """Whether OpenVINO finds a processor that does."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(FileEngine):
    """A model compiled by OpenVINO, with as many threads as torch has when it is made, and a request per thread."""

    runtime = "openvino"
    hides_nan = True

    def keep_compiled(self, folder: Path) -> None:
        (folder / COMPILED).write_bytes(self._compiled.export_model().getvalue())

    def load(self, streams: int = 1) -> None:
        import openvino

        if self.said.computes not in PRECISIONS:
            raise CheckpointError(f"{self.path} computes in {self.said.computes}: OpenVINO in {', '.join(PRECISIONS)}")
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.said.computes],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **({"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}),
        }
        try:
            core = openvino.Core()
            core.set_property({"ENABLE_MMAP": False})  # a file that is cut short while it is mapped ends the process
            compiled = None if self._folder is None or streams > 1 else self._folder.path / COMPILED
            if compiled is not None and compiled.is_file():
                self._compiled: Any = core.import_model(compiled.read_bytes(), "CPU", settings)
            else:
                self._compiled = core.compile_model(self.path, "CPU", settings)
            self._require_names(
                _names(self._compiled.inputs, [IMAGES]), _names(self._compiled.outputs, self.said.tensors())
            )
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.path}: {in_short(error)}") from error
        self._requests = threading.local()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        images = x.detach().contiguous().numpy()
        try:
            found = request.infer([images], share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.path}: {in_short(error)}") from error
        return [torch.from_numpy(array.copy()) for array in found.values()]  # the request writes over them


def _names(ports: Sequence[Any], expected: Sequence[str]) -> list[str]:
    """A name of each port, which may have several: the expected one, if it is among them."""
    fits = len(ports) == len(expected)
    wanted = expected if fits else [""] * len(ports)
    return [name if name in port.names else port.any_name for port, name in zip(ports, wanted, strict=True)]
