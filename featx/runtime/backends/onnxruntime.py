"""ONNX Runtime on CPUs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, in_short
from ..onnx.file import content_of
from .engine import FileEngine


class OnnxRuntimeEngine(FileEngine):
    """A session of ONNX Runtime on the CPU, with as many threads as torch has when it is made."""

    runtime = "onnxruntime"

    def load(self, streams: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, torch.get_num_threads() - streams + 1)  # of a pool, with its callers
        options.log_severity_level = 3  # errors, which are raised, too
        weights = [content_of(self.path.parent / name) for name in self.beside]  # which it would map from the file
        if weights:
            sizes = list(map(len, weights))
            options.add_external_initializers_from_files_in_memory(list(self.beside), weights, sizes)
        providers = ["CPUExecutionProvider"]
        with self._refusals():
            self._session = onnxruntime.InferenceSession(self.path, options, providers=providers)
        self._require_names(
            [one.name for one in self._session.get_inputs()], [one.name for one in self._session.get_outputs()]
        )

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with self._refusals():
            arrays: Any = self._session.run(None, {"images": x.detach().contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Within the block whatever ONNX Runtime raises is a CheckpointError."""
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        kinds = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
        try:
            yield
        except (*kinds, RuntimeError, ValueError) as error:
            raise CheckpointError(f"ONNX Runtime cannot run {self.path}: {in_short(error)}") from error
