"""Takes out what does nothing in inference: identities, dropout, stochastic depth."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ...models.layers.drop_path import DropPath
from ...wrappers import FeatureExtractWrapper
from ..watch import ForwardTrace
from .fold import replace

# Classes of other packages that act in training only, by what their names end with; several packages have each.
ONLY_TRAINING = ("DropPath", "StochasticDepth", "DropBlock2d")


def drop_idle(model: FeatureExtractWrapper, seen: ForwardTrace) -> None:
    """Replace what acts in training only by identities, and take these out of sequences, in place.

    `seen` is a forward of the model, before norms were folded. Levels and modules with hooks stay.
    """
    idle = [module for module in seen.model.modules() if only_training(module) and _returns_its_input(module, seen)]
    replace(model, {seen.path(module): nn.Identity() for module in idle})
    levels = {level.name for level in model.feature_info}
    for module in seen.calls:
        if type(module) is nn.Sequential and _runs_itself(module, seen):
            _shorten(model.get_submodule(seen.path(module)), seen.path(module), levels)


def _returns_its_input(module: nn.Module, seen: ForwardTrace) -> bool:
    return all(len(call.given) == 1 and call.output is call.given[0] for call in seen.calls.get(module, []))


def only_training(module: nn.Module) -> bool:
    """Whether it can do anything in training only."""
    return isinstance(module, _DropoutNd | DropPath) or type(module).__name__.endswith(ONLY_TRAINING)


def _runs_itself(sequence: nn.Module, seen: ForwardTrace) -> bool:
    """Whether its children only run in it; others may ask for them by number, which must not change."""
    inner = [call.module for made in seen.calls[sequence] for call in made.inner]
    children = list(sequence.children())
    return inner == children * len(seen.calls[sequence]) and all(
        len(seen.calls[child]) == inner.count(child) for child in children
    )


def _shorten(sequence: nn.Module, path: str, levels: set[str]) -> None:
    for name, child in list(sequence.named_children()):
        idle = type(child) is nn.Identity and not child._forward_hooks and not child._forward_pre_hooks
        if idle and f"{path}.{name}" not in levels and len(sequence._modules) > 1:
            del sequence._modules[name]
