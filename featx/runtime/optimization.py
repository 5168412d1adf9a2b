"""`optimize`: the same maps in less time."""

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
    """Return a new extractor of the same maps that takes less time, for inference only; `model` stays as it is.

    What is returned was compared with `model` on `example`, or on noise: on two numbers of images, and on two more
    sizes where it takes them.

    Args:
        model: An extractor in eval mode, of `create_model(..., features_only=True)`, native or bridged, or a Pipeline.
        dtype: Of the weights and the maps; None keeps the model's. `agreement` of what is returned says by level how
            similar maps in a lower precision are to the original's, and `in_float32` which layers stay in float32
            because a level would have a cosine similarity below 0.999 (torch.int8: 0.99) or `min_agreement`.
        memory_format: "auto", "channels_last" or "contiguous": of the weights, the images, which are converted, and the
            maps of `eager`. "auto" is what was measured to be faster for such a model and the batch of `example`. The
            maps of other runtimes are contiguous.
        runtime: "eager" is PyTorch, on any device. "onnxruntime" and "openvino" run the model's graph in those
            libraries, on CPUs. "auto" measures all that are installed and can run the model, for up to three seconds,
            and takes the fastest; `choice` of what is returned has the figures. `featx.runtime.runtimes()` says which
            can be used on this machine.
        example: Images (N, in_chans, H, W) as they will be given; None expects batches of several images of the size
            that the weights were made for. torch.int8 is calibrated on them.
        min_agreement: In a lower precision, the least cosine similarity that the map of any level may have with the
            original's, from 0 to 1; None accepts all. Up to a quarter of the layers stays in float32 to reach it.
        cache: A folder for graphs and choices, from which later processes have them at once. None is the default one,
            `featx/runtimes` in the user's cache folder, or `runtimes` in the folder that the environment's FEATX_CACHE
            names; False is none. Models of classes without source code are not kept.

    Raises:
        ArgumentError: An argument is none of these, the model is in training mode, its own maps are not finite, or the
            runtime cannot be used for it.
        MissingPackageError: A package that the runtime needs is not installed.
        InputError: The model does not take `example`.
        ContractError: The model does not run or cannot be captured, or the runtime computes its maps otherwise, or they
            agree less than `min_agreement`.
        OutputError: The folder that `cache` names cannot be written.
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
