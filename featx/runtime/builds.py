"""Building of an extractor on a runtime, and the checks before it."""

import torch

from ..errors import ArgumentError
from .agreement import check_maps, require_agreement
from .backends.engines import require_engine
from .graph_files import Request, build_on_engine
from .mixed_precision import Layers, kept_layers
from .optimized import OptimizedExtractor, eager
from .passes.lowering import layers_in_order, remove_idle_conversions
from .passes.memory_format import layout_for
from .passes.prepare import Prepared, prepare
from .sample_trace import inference_copy

EAGER = "eager"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEFAULT_BATCH = 16  # images, without an example


def require_buildable(runtime: str, request: Request) -> None:
    """Check, before any work, that the model can run on the runtime on this machine.

    Raises:
        ArgumentError: The runtime does not support the dtype or the model's device.
        MissingPackageError: A package that the runtime needs is not installed.
    """
    if runtime != EAGER:
        require_engine(runtime, request.model, request.dtype, request.example is not None)
    elif request.dtype not in (None, *DTYPES):
        raise ArgumentError(f"dtype={request.dtype!r}: choose one of {DTYPES}, or None to keep the model's")


def built(runtime: str, request: Request) -> OptimizedExtractor:
    """The extractor on a runtime that passed `require_buildable`; it raises the errors of `optimize`."""
    extractor = _build_eager(request) if runtime == EAGER else build_on_engine(runtime, request)
    require_agreement(extractor.agreement, request.min_agreement)
    return extractor


def _build_eager(request: Request) -> OptimizedExtractor:
    prepared = prepare(request.model, request.example)
    images = prepared.trace.images
    batch = DEFAULT_BATCH if request.example is None else len(request.example)
    layout = layout_for(request.memory_format, prepared.extractor, batch)
    extractor = eager(prepared.extractor, request.dtype, layout, _in_float32(prepared, request, layout))
    if extractor.in_float32:
        remove_idle_conversions(extractor, images)
    extractor.agreement = check_maps(extractor, request.model, images, request.example, request.computes)
    return extractor


def _in_float32(prepared: Prepared, request: Request, layout: torch.memory_format) -> Layers:
    """The layers that stay in float32 in PyTorch."""
    if not request.target_similarity:
        return ()

    def similarity(kept: Layers) -> float:
        try:
            return request.similarity(eager(inference_copy(prepared.extractor), request.dtype, layout, kept))
        except RuntimeError:  # the model's code does not support tensors of two dtypes, so precisions cannot be mixed
            return -1.0

    return kept_layers(lambda: layers_in_order(*prepared), similarity, request.target_similarity)
