"""Less memory for activations, more time: the forward of some modules runs again in the backward pass.

https://arxiv.org/abs/1604.06174, with the non-reentrant `torch.utils.checkpoint`: every parameter gets its gradient,
also where no input needs one. PyTorch by itself updates the running statistics of norms in either run, twice per step;
here norms in the second run write into copies, so that they are updated once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from ..arguments import require_texts
from ..errors import ArgumentError, ContractError, names_in
from ..wrappers.order import meta_images, run_on_meta
from .parts import Part, backbone_in


def recompute(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> None:
    """Keep only the inputs of some modules of `model` for the backward pass, in place, and compute the rest again.

    kind: the class of block, or paths of modules such as the names of levels: `model.feature_info.names()`.

    It is done in training mode alone, and where gradients are on; values, gradients and names of parameters stay.
    Raises ArgumentError if there is no such module, or if it is a container that the backbone never calls, because it
    calls its entries.
    """
    chosen = _chosen(model, kind)
    idle = _idle(model, chosen)
    if idle and (not isinstance(kind, type) or len(idle) == len(chosen)):
        raise ArgumentError(
            f"{idle} are never called themselves, only what is in them is: pass the paths or the class of that"
        )
    for module in chosen.values():
        vars(module)["forward"] = partial(_recomputed, module)


def _chosen(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> dict[str, nn.Module]:
    """The modules asked for, by path."""
    modules = dict(model.named_modules())
    if isinstance(kind, type):
        found = {path: module for path, module in modules.items() if isinstance(module, kind)}
        if not found:
            kinds = sorted({type(module).__name__ for module in modules.values()})
            raise ArgumentError(f"no module is a {kind.__name__}; there are {names_in(kinds, 30)}")
        return found
    paths = [kind] if isinstance(kind, str) else require_texts(kind, "kind", str, "paths of modules")
    missing = [path for path in paths if path not in modules]
    if missing or not paths:
        blocks = [path for path in modules if path and path.count(".") < 2]
        raise ArgumentError(f"no module is called {names_in(missing)}; there are {names_in(blocks)}")
    return {path: modules[path] for path in paths}


def _idle(model: nn.Module, chosen: dict[str, nn.Module]) -> list[str]:
    """Paths of the chosen modules of the backbone that its forward does not call; nothing if it needs values to run."""
    part = _backbone(model)
    inside = {id(module) for module in part.module.modules()} if part else set()
    waiting = {path: module for path, module in chosen.items() if id(module) in inside}
    if part is None or not waiting:
        return []
    handles = [module.register_forward_pre_hook(_when_called(waiting, path)) for path, module in [*waiting.items()]]
    try:
        run_on_meta(part.module, meta_images(part.module))
    except ContractError:
        return []
    finally:
        for handle in handles:
            handle.remove()
    return list(waiting)


def _when_called(waiting: dict[str, nn.Module], path: str) -> Callable[..., None]:
    """A hook on the module at `path`, which no longer waits once it, or a copy of it, is called."""

    def called(*_: Any) -> None:
        waiting.pop(path, None)

    return called


def _backbone(model: nn.Module) -> Part | None:
    try:
        return backbone_in(model)
    except ContractError:
        return None


def _recomputed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In the place of a module's `forward`."""
    forward = partial(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():  # a compiled graph updates statistics once by itself
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_runs, module), **kwargs)


def _runs(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first and the second run."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Norms write into copies of their running statistics."""
    norms = [part for part in module.modules() if isinstance(part, _NormBase) and part.track_running_stats]
    own = [part._buffers for part in norms]
    for part in norms:
        part._buffers = {name: None if value is None else value.clone() for name, value in part._buffers.items()}
    try:
        yield
    finally:
        for part, buffers in zip(norms, own, strict=True):
            part._buffers = buffers
