"""`optimize`: the same maps in less time."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..wrappers import FeatureExtractWrapper
from .agreement import agreement, smooth_noise
from .fold import fold, pairs
from .idle import drop_idle, only_training
from .layout import MemoryFormat, layout_for
from .onednn import onednn, require_onednn
from .optimized import OptimizedExtractor, eager
from .reparameterise import reparameterise
from .watch import copy_of, watch

Runtime = Literal["eager", "onednn"]
BUILD = {"eager": eager, "onednn": onednn}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def optimize(
    model: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    memory_format: MemoryFormat = "auto",
    runtime: Runtime = "eager",
    example: Tensor | None = None,
) -> OptimizedExtractor:
    """A new extractor of the same maps that takes less time, for inference only; `model` stays as it is.

    model: an extractor in eval mode: of `create_model(..., features_only=True)`, native or bridged, or a Pipeline.
    dtype: of the weights and the maps; None keeps the model's. Of a lower precision, `agreement` of what is returned
        says by level how similar the maps of `example` are to the original's.
    memory_format: "auto", "channels_last" or "contiguous"; of the weights, the images, which are converted, and the
        maps. "auto" is what was measured to be faster for such a model and the batch of `example`.
    runtime: "eager" is PyTorch as it is, anywhere. "onednn" captures the operations and runs them on oneDNN's kernels,
        with activations and residual sums in them, on CPUs, in float32 or bfloat16; it takes batches of any size, and
        where the model asks for the sizes of maps, only images of the size of `example`, or of the model's own size.
    example: images (N, in_chans, H, W) as they will be given; None expects batches of several.

    Raises ArgumentError for arguments that are none of these, for a model in training mode and where the runtime cannot
    be used, InputError for an example that the model does not take, ContractError for a model that does not run or
    cannot be captured.
    """
    _require(model, dtype, runtime)
    assert isinstance(model, FeatureExtractWrapper)
    if runtime == "onednn":
        require_onednn(model, dtype)
    if example is not None:
        model._check(example)
    optimized = copy_of(model).eval()
    reparameterise(optimized)
    seen = watch(optimized, example)
    batch = len(example) if example is not None and runtime == "eager" else 16
    layout = layout_for(memory_format, optimized, batch)
    for pair in pairs(seen):
        fold(optimized, pair)
    drop_idle(optimized, seen)
    made = BUILD[runtime](optimized, dtype, layout, seen)
    if dtype is not None and dtype.itemsize < seen.images.dtype.itemsize:
        made.agreement = agreement(made, model, smooth_noise(seen.images) if example is None else example)
    return made


def _require(model: object, dtype: object, runtime: object) -> None:
    """Raise ArgumentError saying what is wrong with the arguments."""
    if not isinstance(model, FeatureExtractWrapper):
        raise ArgumentError(
            f"optimize takes an extractor, got {type(model).__name__}: make one with create_model(..., "
            "features_only=True) or FeatureExtractWrapper(model)"
        )
    if runtime not in get_args(Runtime):
        raise ArgumentError(f"runtime={runtime!r}: choose one of {get_args(Runtime)}")
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r}: choose one of {DTYPES}, or None to keep the model's")
    acting = [(name or "the extractor", module) for name, module in model.named_modules() if _acts(module)]
    training = [name for name, module in acting if module.training]
    if training:
        raise ArgumentError(
            f"optimize is for inference, and {len(training)} modules are in training mode ({training[0]} first): call "
            "model.eval() before"
        )


def _acts(module: nn.Module) -> bool:
    """Whether its mode can matter: stand-ins for what a bridge left out have any mode."""
    return bool(module._parameters or module._buffers or module._modules) or only_training(module)
