"""Leave modules out of a model without touching the model."""

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from .transparent import Transparent

Module = TypeVar("Module", bound=nn.Module)


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
