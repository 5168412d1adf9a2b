"""The `onnxruntime` runtime, which executes ONNX files on the CPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, in_short
from ..onnx.file import content_of
from .engine import FileEngine


class OnnxRuntimeEngine(FileEngine):
    """A session of ONNX Runtime on the CPU; it uses as many threads as torch does when the session is created."""

    runtime = "onnxruntime"
    dtypes = (torch.float32, torch.int8)

    def load(self, streams: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, torch.get_num_threads() - streams + 1)  # callers compute too; one counts
        options.log_severity_level = 3  # log errors only, which are also raised
        weights = [
            content_of(self.path.parent / name) for name in self.weights_files
        ]  # in memory, else mapped from the file
        if weights:
            sizes = list(map(len, weights))
            options.add_external_initializers_from_files_in_memory(list(self.weights_files), weights, sizes)
        providers = ["CPUExecutionProvider"]
        with self._converted_errors():
            self._session = onnxruntime.InferenceSession(self.path, options, providers=providers)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._require_names([value.name for value in inputs], [value.name for value in outputs])

    def keep_compiled(self, folder: Path) -> None:
        """Write nothing: the session is built from the ONNX file in any case."""

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with self._converted_errors():
            arrays: Any = self._session.run(None, {"images": x.detach().contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]

    @contextmanager
    def _converted_errors(self) -> Iterator[None]:
        """Convert exceptions of ONNX Runtime to CheckpointError within a `with` block."""
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        errors = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
        try:
            yield
        except (*errors, RuntimeError, ValueError) as error:
            raise CheckpointError(f"ONNX Runtime cannot run {self.path}: {in_short(error)}") from error
