"""`optimize`, which returns a faster extractor of the same maps."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from .agreement import require_min_agreement
from .auto import fastest
from .builds import EAGER, built, require_buildable
from .cache import Place, cache_at
from .graph_files import Request
from .optimized import OptimizedExtractor
from .passes.memory_format import MemoryFormat, require_memory_format
from .passes.prepare import require_extractor

Runtime = Literal["eager", "onnxruntime", "openvino", "auto"]


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    memory_format: MemoryFormat = "auto",
    runtime: Runtime = EAGER,
    example: Tensor | None = None,
    min_agreement: float | None = None,
    cache: Place = None,
) -> OptimizedExtractor:
    """Return a new extractor for inference that computes the same maps in less time; `model` is not modified.

    The maps are compared with those of `model` on `example`, or on noise: for two batch sizes, and for two other image
    sizes if the extractor accepts them.

    Args:
        model: An extractor in eval mode, from `create_model(..., features_only=True)`, native or bridged, or a
            Pipeline.
        dtype: Dtype of the weights and the maps; None keeps the model's. In a lower precision, `agreement` of the
            result has the cosine similarity of each level's map with the original's, and `in_float32` the layers that
            stay in float32 because a level would have a similarity below 0.999 (torch.int8: 0.99) or `min_agreement`.
            torch.int8 is calibrated on `example`.
        memory_format: Memory format of the weights, the images, which are converted, and the maps of `eager`:
            "channels_last", "contiguous", or "auto", which selects the faster one for this model and the batch size
            of `example`, according to measurements. Maps of other runtimes are contiguous.
        runtime: "eager" is PyTorch, on any device. "onnxruntime" and "openvino" run the model's graph in those
            libraries, on CPUs. "auto" measures all installed runtimes that support the model, for up to three
            seconds, and selects the fastest; `choice` of the result has the measurements. `featx.runtime.runtimes()`
            lists the runtimes that are available on this machine.
        example: Images (N, in_chans, H, W) of the batch size and resolution that will be used; None expects batches
            of several images of the size that the weights were trained for.
        min_agreement: In a lower precision, the minimum cosine similarity of each level's map with the original's,
            from 0 to 1; None accepts any. Up to a quarter of the layers stay in float32 to reach it.
        cache: A folder for graphs and choices, from which later processes load them. None is the default folder:
            `featx/runtimes` in the user's cache folder, or `runtimes` in the folder that the environment variable
            FEATX_CACHE names. False disables the cache. Models with classes whose source code is not available are
            not cached.

    Returns:
        An extractor with the same levels, preprocessing and output type.

    Raises:
        ArgumentError: An argument is invalid, the model is in training mode, its own maps are not finite, or the
            runtime does not support it.
        MissingPackageError: A package that the runtime needs is not installed.
        InputError: The model does not support `example`.
        ContractError: The model does not run or cannot be captured, or the maps of the runtime differ from the
            model's, or agree less than `min_agreement`.
        OutputError: The folder that `cache` names is not writable.
    """
    model = require_extractor(model, "optimize")
    if runtime not in get_args(Runtime):
        raise ArgumentError(f"runtime={runtime!r}: choose one of {get_args(Runtime)}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r}: expected a torch.dtype, or None to keep the model's")
    require_memory_format(memory_format)
    require_min_agreement(min_agreement, dtype)
    request = Request(model, dtype, memory_format, example, cache_at(cache), min_agreement)
    if example is not None:
        model._check(example)
    if runtime == "auto":
        return fastest(request)
    require_buildable(runtime, request)
    return built(runtime, request)
