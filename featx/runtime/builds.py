"""An extractor on one runtime, and what keeps it from being built there."""

import torch

from ..errors import ArgumentError
from .agreement import compared, require_agreement
from .backends.engines import require_engine
from .graph_files import Request, on_runtime, precision_for
from .optimized import OptimizedExtractor, eager
from .passes.memory_format import layout_for
from .passes.prepare import prepare

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
    mixed = precision_for(prepared, request)
    made = eager(extractor, request.dtype, layout, mixed, seen.images)
    made.agreement = compared(made, request.model, seen.images, request.example, request.computes)
    return made
