"""`optimize`: the same maps in less time."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..wrappers import FeatureExtractWrapper
from .agreement import compared, require_agreement, require_min_agreement, smooth_noise
from .capture import Wish
from .engines import engine_for, require_engine
from .layout import MemoryFormat, layout_for
from .optimized import OptimizedExtractor, eager
from .prepare import prepare, require_extractor
from .rounding import correct_rounding

Runtime = Literal["eager", "onnxruntime", "openvino"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ENOUGH = 8  # images to know the means of a layer's inputs


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    memory_format: MemoryFormat = "auto",
    runtime: Runtime = "eager",
    example: Tensor | None = None,
    min_agreement: float | None = None,
) -> OptimizedExtractor:
    """A new extractor of the same maps that takes less time, for inference only; `model` stays as it is.

    model: an extractor in eval mode: of `create_model(..., features_only=True)`, native or bridged, or a Pipeline.
    dtype: of the weights and the maps; None keeps the model's. Of a lower precision, `agreement` of what is returned
        says by level how similar the maps of `example` are to the original's.
    memory_format: "auto", "channels_last" or "contiguous"; of the weights, the images, which are converted, and the
        maps of `eager`. "auto" is what was measured to be faster for such a model and the batch of `example`. The maps
        of other runtimes are contiguous.
    runtime: "eager" is PyTorch as it is, anywhere. "onnxruntime" and "openvino" capture the operations and run them in
        those libraries, on CPUs; they take batches of any size, and where the model's code depends on the size of
        images, only those of the size of `example`, or of the model's own size. `featx.runtime.runtimes()` says which
        can be used here.
    example: images (N, in_chans, H, W) as they will be given; None expects batches of several. torch.int8 is calibrated
        on them.
    min_agreement: in a lower precision, the least cosine similarity that the map of any level may have with the
        original's, from 0 to 1; None accepts all.

    What is returned has run on `example`, or on noise, beside `model`: on two numbers of images, and on two more sizes
    where it takes them.

    Raises ArgumentError for arguments that are none of these, for a model in training mode and where the runtime cannot
    be used, MissingPackageError for what it needs, InputError for an example that the model does not take, and
    ContractError for a model that does not run or cannot be captured, whose maps a runtime computes otherwise, or agree
    less than `min_agreement`.
    ArgumentError for a model whose own maps are not finite.
    """
    model = require_extractor(model, "optimize")
    _require(model, dtype, runtime, example)
    require_min_agreement(min_agreement, dtype)
    optimized, seen = prepare(model, example)
    layout = layout_for(memory_format, optimized, 16 if example is None else len(example))
    given, computes = seen.images.dtype, dtype or seen.images.dtype
    if computes.is_floating_point and computes.itemsize < given.itemsize:
        correct_rounding(optimized, smooth_noise(seen.images) if example is None else example[:ENOUGH], computes)
    if runtime == "eager":
        made = eager(optimized, dtype, layout)
    else:
        made = engine_for(runtime, optimized, seen, Wish(computes, example))
    made.agreement = compared(made, model, seen.images, example, computes)
    require_agreement(made.agreement, min_agreement)
    return made


def _require(model: FeatureExtractWrapper, dtype: object, runtime: object, example: Tensor | None) -> None:
    """Raise what is wrong with the arguments."""
    if runtime not in get_args(Runtime):
        raise ArgumentError(f"runtime={runtime!r}: choose one of {get_args(Runtime)}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentError(f"dtype={dtype!r}: choose one of {DTYPES}, or None to keep the model's")
    if runtime == "eager" and dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r}: choose one of {DTYPES}, or None to keep the model's")
    if runtime != "eager":
        require_engine(f"{runtime}", model, dtype, example is not None)
