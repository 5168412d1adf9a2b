"""Wrappers that keep the names of the wrapped module's parameters, and copies of modules without some children."""

from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

from torch import nn

from ..errors import ContractError

Inner = TypeVar("Inner", bound=nn.Module)
Module = TypeVar("Module", bound=nn.Module)

# Methods and hooks that change how a module's state is saved or loaded, which Transparent would bypass.
STATE_METHODS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "get_extra_state")
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

# Classes whose methods only convert outdated checkpoints. Their extractors do not load these.
UPDATING = {"torchvision.models.mnasnet.MNASNet"}


class Transparent(nn.Module, Generic[Inner]):
    """Wraps `inner` and has its parameters, buffers and children under the same names, so that state dicts are equal.

    Both modules share their registries: a child that is replaced or deleted in one is replaced or deleted in the other.
    Attributes of subclasses start with an underscore, so that they do not hide a child of `inner`.

    Raises:
        ContractError: `inner` changes how its own state is saved or loaded.
    """

    def __init__(self, inner: Inner) -> None:
        _require_plain_state(inner)
        super().__init__()
        self.training = inner.training
        self._held = (inner,)  # in a tuple, so that nn.Module does not register it under a prefix
        self._parameters, self._buffers, self._modules = inner._parameters, inner._buffers, inner._modules
        self._non_persistent_buffers_set = inner._non_persistent_buffers_set

    @property
    def _inner(self) -> Inner:
        return self._held[0]

    def train(self, mode: bool = True) -> Self:
        self._inner.train(mode)
        self.training = mode
        return self


def without(module: Module, paths: Iterable[str]) -> Module:
    """A copy of `module` without the modules at `paths`. It shares everything else with the original.

    An entry of a ModuleList is replaced by an Identity, so that the later entries keep their indices.
    """
    removed: dict[str, list[str]] = {}
    for path in paths:
        child, _, rest = path.partition(".")
        removed.setdefault(child, []).append(rest)
    pruned = _shallow_copy(module)
    for child, rests in removed.items():
        if "" not in rests:
            pruned._modules[child] = without(module.get_submodule(child), rests)
        elif isinstance(module, nn.ModuleList):
            pruned._modules[child] = nn.Identity()
        else:
            del pruned._modules[child]
    return pruned


def _shallow_copy(module: Module) -> Module:
    """A copy that shares everything but the registry of children, which a Transparent shares with its inner module."""
    copied = module.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    if isinstance(module, Transparent):
        inner = _shallow_copy(module._inner)
        copied.__dict__.update(_held=(inner,), _modules=inner._modules)
    else:
        copied._modules = module._modules.copy()
    return copied


def innermost(model: nn.Module) -> nn.Module:
    """The model inside nested Transparent modules; any other model itself."""
    while isinstance(model, Transparent):
        model = model._inner
    return model


def _require_plain_state(inner: nn.Module) -> None:
    kind: Any = type(inner)
    if isinstance(inner, Transparent) or f"{kind.__module__}.{kind.__qualname__}" in UPDATING:
        return
    overridden = [name for name in STATE_METHODS if getattr(kind, name) is not getattr(nn.Module, name)]
    hooked = [name for name in STATE_HOOKS if getattr(inner, name)]
    if overridden or hooked:
        raise ContractError(
            f"{kind.__name__} changes how its own state is saved or loaded ({', '.join(overridden + hooked)}), which "
            "its feature extractor would bypass: move that into a child module"
        )
