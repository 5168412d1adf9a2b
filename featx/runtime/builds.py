"""An extractor on one runtime, and what keeps it from being built there."""

import torch

from ..errors import ArgumentError
from .agreement import compared, require_agreement
from .backends.engines import require_engine
from .graph_files import Request, on_runtime
from .mixed_precision import Layers, kept_layers
from .optimized import OptimizedExtractor, eager
from .passes.lowering import drop_idle_conversions, layers_in_order
from .passes.memory_format import layout_for
from .passes.prepare import Prepared, prepare
from .watch import copy_of

EAGER = "eager"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def require_buildable(runtime: str, request: Request) -> None:
    """Raise, before anything is done, what keeps the runtime from running the model here.

    Raises:
        ArgumentError: the runtime does not compute in that dtype, or on the model's device.
        MissingPackageError: a package that the runtime needs is not installed.
    """
    if runtime != EAGER:
        require_engine(runtime, request.model, request.dtype, request.example is not None)
    elif request.dtype not in (None, *DTYPES):
        raise ArgumentError(f"dtype={request.dtype!r}: choose one of {DTYPES}, or None to keep the model's")


def built(runtime: str, request: Request) -> OptimizedExtractor:
    """The extractor on a runtime that it can be built on; see `optimize` for what is raised."""
    made = _on_eager(request) if runtime == EAGER else on_runtime(runtime, request)
    require_agreement(made.agreement, request.min_agreement)
    return made


def _on_eager(request: Request) -> OptimizedExtractor:
    extractor, seen = prepared = prepare(request.model, request.example)
    layout = layout_for(request.memory_format, extractor, 16 if request.example is None else len(request.example))
    made = eager(extractor, request.dtype, layout, _in_float32(prepared, request, layout))
    if made.in_float32:
        drop_idle_conversions(made, seen.images)
    made.agreement = compared(made, request.model, seen.images, request.example, request.computes)
    return made


def _in_float32(prepared: Prepared, request: Request, layout: torch.memory_format) -> Layers:
    """The layers that stay in float32 in PyTorch."""
    if not request.wanted:
        return ()

    def similarity(kept: Layers) -> float:
        try:
            return request.similarity(eager(copy_of(prepared.extractor), request.dtype, layout, kept))
        except RuntimeError:  # the model's code does not take tensors of two dtypes, and cannot be mixed
            return -1.0

    return kept_layers(lambda: layers_in_order(*prepared), similarity, request.wanted)
