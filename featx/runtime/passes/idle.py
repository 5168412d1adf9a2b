"""Takes out what does nothing in inference: identities, dropout, stochastic depth."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ...models.layers.drop_path import DropPath
from ...tracing.module_trace import ModuleCall, ModuleTrace
from ...wrappers import FeatureExtractWrapper
from .fold import replace

# Classes of other packages that act in training only, by what their names end with; several packages have each.
ONLY_TRAINING = ("DropPath", "StochasticDepth", "DropBlock2d")


def drop_idle(model: FeatureExtractWrapper, seen: ModuleTrace) -> None:
    """Replace what acts in training only by identities, and take these out of sequences, in place.

    `seen` is a forward of the model, before norms were folded. Levels and modules with hooks stay.
    """
    modules = dict(seen.model.named_modules())
    idle = [path for path, module in modules.items() if only_training(module) and _returns_its_input(path, seen)]
    replace(model, {path: nn.Identity() for path in idle})
    levels = {level.name for level in model.feature_info}
    paths = {module: path for path, module in modules.items()}
    for path, calls in seen.calls.items():
        children = [paths[child] for child in modules[path].children()]
        if type(modules[path]) is nn.Sequential and _runs_itself(calls, children, seen):
            _shorten(model.get_submodule(path), path, levels)


def _returns_its_input(path: str, seen: ModuleTrace) -> bool:
    return all(len(call.inputs) == 1 and call.output is call.inputs[0] for call in seen.calls.get(path, []))


def only_training(module: nn.Module) -> bool:
    """Whether it can do anything in training only."""
    return isinstance(module, _DropoutNd | DropPath) or type(module).__name__.endswith(ONLY_TRAINING)


def _runs_itself(calls: Sequence[ModuleCall], children: Sequence[str], seen: ModuleTrace) -> bool:
    """Whether a sequence's children only run in it; others may ask for them by number, which must not change."""
    inner = [call.path for made in calls for call in made.children]
    return inner == [*children] * len(calls) and all(len(seen.calls[child]) == inner.count(child) for child in children)


def _shorten(sequence: nn.Module, path: str, levels: set[str]) -> None:
    for name, child in list(sequence.named_children()):
        idle = type(child) is nn.Identity and not child._forward_hooks and not child._forward_pre_hooks
        if idle and f"{path}.{name}" not in levels and len(sequence._modules) > 1:
            del sequence._modules[name]
