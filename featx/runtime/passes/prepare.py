"""Preparation of an extractor for inference: all passes in order, on a copy."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from ...errors import ArgumentError
from ...models.repvgg import RepVGGBlock
from ...tracing.module_trace import ModuleTrace
from ...wrappers import FeatureExtractWrapper
from ..sample_trace import inference_copy, trace_forward
from .fold import fold, foldable
from .idle import is_training_only, remove_idle


class Prepared(NamedTuple):
    """The prepared copy, and the trace of its forward from before norms were folded."""

    extractor: FeatureExtractWrapper
    trace: ModuleTrace


def prepare(model: FeatureExtractWrapper, example: Tensor | None) -> Prepared:
    """A copy for inference: with fused branches and folded norms, without modules that act only in training.

    Raises:
        InputError: The model does not support the example.
        ContractError: The model does not run.
    """
    if example is not None:
        model._check(example)
    extractor = inference_copy(model).eval()
    _reparameterize(extractor)
    trace = trace_forward(extractor, example)
    fold(extractor, foldable(trace))
    remove_idle(extractor, trace)
    return Prepared(extractor, trace)


def _reparameterize(model: nn.Module) -> None:
    """Fuse the parallel branches of RepVGG's blocks, and of timm's blocks that support it, in place."""
    for module in list(model.modules()):
        is_timm = type(module).__module__.startswith("timm.")
        if isinstance(module, RepVGGBlock) or (is_timm and callable(getattr(module, "reparameterize", None))):
            block: Any = module
            block.reparameterize()
    model.requires_grad_(False)


def require_extractor(model: object, caller: str) -> FeatureExtractWrapper:
    """The model if it is an extractor with weights in eval mode, else ArgumentError that names the calling function."""
    if not isinstance(model, FeatureExtractWrapper):
        raise ArgumentError(
            f"{caller} takes an extractor, got {type(model).__name__}: make one with create_model(..., "
            "features_only=True) or FeatureExtractWrapper(model)"
        )
    modules = [(name or "the extractor", module) for name, module in model.named_modules() if _has_mode(module)]
    training = [name for name, module in modules if module.training]
    if training:
        raise ArgumentError(
            f"{caller} is for inference, and {len(training)} modules are in training mode ({training[0]} first): call "
            "model.eval() before"
        )
    if next(model.parameters(), None) is None:
        raise ArgumentError(
            f"{caller} takes an extractor with weights, and this one was built without: pass the original"
        )
    return model


def _has_mode(module: nn.Module) -> bool:
    """Whether the mode of the module can matter; placeholders for modules that a bridge removed may have any mode."""
    return bool(module._parameters or module._buffers or module._modules) or is_training_only(module)
