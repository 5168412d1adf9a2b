"""Removal of modules that do nothing in inference: dropout, stochastic depth and identities."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ...models.layers.drop_path import DropPath
from ...tracing.module_trace import ModuleCall, ModuleTrace
from ...wrappers import FeatureExtractWrapper
from .fold import replace

# Suffixes of class names of other packages that act only in training; each is found in several packages.
ONLY_TRAINING = ("DropPath", "StochasticDepth", "DropBlock2d")


def remove_idle(model: FeatureExtractWrapper, trace: ModuleTrace) -> None:
    """Replace modules that act only in training by identities, and remove identities from nn.Sequential, in place.

    Levels and modules with hooks are kept. `trace` is of the model's forward before norms were folded.
    """
    modules = dict(trace.model.named_modules())
    idle = [path for path, module in modules.items() if is_training_only(module) and _returns_its_input(path, trace)]
    replace(model, {path: nn.Identity() for path in idle})
    levels = {level.name for level in model.feature_info}
    paths = {module: path for path, module in modules.items()}
    for path, calls in trace.calls.items():
        children = [paths[child] for child in modules[path].children()]
        if type(modules[path]) is nn.Sequential and _calls_all_children(calls, children, trace):
            _remove_identities(model.get_submodule(path), path, levels)


def _returns_its_input(path: str, trace: ModuleTrace) -> bool:
    return all(len(call.inputs) == 1 and call.output is call.inputs[0] for call in trace.calls.get(path, []))


def is_training_only(module: nn.Module) -> bool:
    """Whether the module, by its class, acts only in training."""
    return isinstance(module, _DropoutNd | DropPath) or type(module).__name__.endswith(ONLY_TRAINING)


def _calls_all_children(calls: Sequence[ModuleCall], children: Sequence[str], trace: ModuleTrace) -> bool:
    """Whether each call of an nn.Sequential runs its children in order, and nothing else calls them, such as by index.

    Removing a child would change the indices of the others.
    """
    inner = [child.path for call in calls for child in call.children]
    return inner == [*children] * len(calls) and all(len(trace.calls[path]) == inner.count(path) for path in children)


def _remove_identities(sequence: nn.Module, path: str, levels: set[str]) -> None:
    """Remove identities without hooks that are not levels from an nn.Sequential, in place; one child remains."""
    for name, child in list(sequence.named_children()):
        is_idle = type(child) is nn.Identity and not child._forward_hooks and not child._forward_pre_hooks
        if is_idle and f"{path}.{name}" not in levels and len(sequence._modules) > 1:
            del sequence._modules[name]
