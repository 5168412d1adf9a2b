"""The `openvino` runtime: graphs in ONNX files on the CPU."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .engine import FileEngine

PRECISIONS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}


def computes_bfloat16() -> bool:
    """Whether OpenVINO finds a processor that does."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoEngine(FileEngine):
    """A model compiled by OpenVINO, with as many threads as torch has when it is made, and a request per thread."""

    runtime = "openvino"
    hides_nan = True

    def load(self) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.said.computes],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._compiled: Any = openvino.Core().compile_model(self.path, "CPU", settings)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot run {self.path}: {error}") from error
        self._requests = threading.local()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        found = request.infer([x.detach().contiguous().numpy()], share_inputs=True, share_outputs=True)
        return [torch.from_numpy(array.copy()) for array in found.values()]  # the request writes over them
