"""An extractor made ready for inference: a copy without what inference does not need."""

from typing import NamedTuple

from torch import Tensor, nn

from ...errors import ArgumentError
from ...tracing.module_trace import ModuleTrace
from ...wrappers import FeatureExtractWrapper
from ..watch import copy_of, watch
from .fold import fold, pairs
from .idle import drop_idle, only_training
from .reparameterise import reparameterise


class Prepared(NamedTuple):
    """The copy, and a forward that was seen before norms were folded."""

    extractor: FeatureExtractWrapper
    seen: ModuleTrace


def prepare(model: FeatureExtractWrapper, example: Tensor | None) -> Prepared:
    """A copy with branches fused, norms folded and identities dropped; InputError for an example it does not take."""
    if example is not None:
        model._check(example)
    extractor = copy_of(model).eval()
    reparameterise(extractor)
    seen = watch(extractor, example)
    fold(extractor, pairs(seen))
    drop_idle(extractor, seen)
    return Prepared(extractor, seen)


def require_extractor(model: object, what: str) -> FeatureExtractWrapper:
    """The model, if it is an extractor in eval mode with weights; ArgumentError, which starts with `what`, if not."""
    if not isinstance(model, FeatureExtractWrapper):
        raise ArgumentError(
            f"{what} takes an extractor, got {type(model).__name__}: make one with create_model(..., "
            "features_only=True) or FeatureExtractWrapper(model)"
        )
    acting = [(name or "the extractor", module) for name, module in model.named_modules() if _acts(module)]
    training = [name for name, module in acting if module.training]
    if training:
        raise ArgumentError(
            f"{what} is for inference, and {len(training)} modules are in training mode ({training[0]} first): call "
            "model.eval() before"
        )
    if next(model.parameters(), None) is None:
        raise ArgumentError(
            f"{what} takes an extractor with weights, and this one was built without: pass the original"
        )
    return model


def _acts(module: nn.Module) -> bool:
    """Whether its mode can matter: stand-ins for what a bridge left out have any mode."""
    return bool(module._parameters or module._buffers or module._modules) or only_training(module)
