"""The `compile` runtime: torch.compile with weights frozen into the code, once per shape of images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.refusals import ThirdPartyError, third_party
from .capture import TRACING, MapsOf, exported, module_of
from .engine import Engine
from .graph import Wish, convert


class CompiledEngine(Engine):
    """Compiles the extractor for every shape of images that it meets, when it meets it."""

    runtime = "compile"
    hides_nan = True

    def __init__(self, extractor: FeatureExtractWrapper, wish: Wish) -> None:
        convert(extractor, wish)
        self.extractor, self.dtype = extractor, wish.dtype
        self.device = next(extractor.parameters()).device
        self._by_shape: dict[tuple[int, ...], Callable[[Tensor], Sequence[Tensor]]] = {}

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.no_grad():
            # PyTorch compiles anew for tensors of inference mode
            x = x.clone() if x.is_inference() else x.detach()
            shape = tuple(x.shape)
            if shape not in self._by_shape:
                with TRACING:  # another thread may have compiled it meanwhile
                    self._by_shape[shape] = self._by_shape.get(shape) or self._compile(x)
            return self._by_shape[shape](x)

    def _compile(self, x: Tensor) -> Callable[[Tensor], Sequence[Tensor]]:
        try:
            graph = module_of(exported(MapsOf(self.extractor), x, None))
            compiled: Any = torch.compile(graph, dynamic=False, fullgraph=True, options={"freezing": True})
            third_party(compiled, x)
        except ThirdPartyError as error:
            told = f"{error}".strip().partition("\n")[0]
            raise InputError(
                f"PyTorch cannot compile the model for images {tuple(x.shape)} ({told}): give it images that the model "
                "takes, or use runtime='eager'"
            ) from error
        return compiled

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_by_shape": {}}  # compiled code stays in the process, and in PyTorch's cache on disk
