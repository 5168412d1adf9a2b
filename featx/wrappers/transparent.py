"""Modules that stand in for others without changing any name: as they are, or without some of their parts."""

from collections.abc import Iterable
from typing import Any, Generic, Self, TypeVar

from torch import nn

from ..errors import ContractError

Inner = TypeVar("Inner", bound=nn.Module)
Module = TypeVar("Module", bound=nn.Module)

# What a module may override or register to change how its state is read or written, which this class would bypass.
STATE_METHODS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "get_extra_state")
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)

# Classes that only bring outdated checkpoints up to date: their extractors take current ones.
UPDATING = {"torchvision.models.mnasnet.MNASNet"}


class Transparent(nn.Module, Generic[Inner]):
    """Has the parameters, buffers and children of `inner` under the same names, so that checkpoints fit both.

    Both modules hold the same registries: replacing or deleting a child of one replaces or deletes it in the other.
    Attributes of this class and its subclasses start with an underscore, lest one hides a child of `inner`.
    Raises ContractError if `inner` reads or writes its own state in a special way.
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
    """A copy of `module` that lacks the modules at `paths`; everything else in it is shared, not copied.

    An entry of a ModuleList is replaced by an Identity, so that the entries after it keep their numbers.
    """
    dropped: dict[str, list[str]] = {}
    for path in paths:
        child, _, rest = path.partition(".")
        dropped.setdefault(child, []).append(rest)
    pruned = shallow(module)
    for child, rests in dropped.items():
        if "" not in rests:
            pruned._modules[child] = without(module.get_submodule(child), rests)
        elif isinstance(module, nn.ModuleList):
            pruned._modules[child] = nn.Identity()
        else:
            del pruned._modules[child]
    return pruned


def shallow(module: Module) -> Module:
    """The same module with a registry of children of its own; a stand-in and what it stands for share it again."""
    copied = module.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    if isinstance(module, Transparent):
        inner = shallow(module._inner)
        copied.__dict__.update(_held=(inner,), _modules=inner._modules)
    else:
        copied._modules = module._modules.copy()
    return copied


def innermost(model: nn.Module) -> nn.Module:
    """The model that modules stand in for, one for another; any other model itself."""
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
