"""Less memory for activations, more time: the forward of some modules runs again in the backward pass.

https://arxiv.org/abs/1604.06174, with the non-reentrant `torch.utils.checkpoint`: every parameter gets its gradient,
also where no input needs one. PyTorch by itself updates the running statistics of norms in either run, twice per step;
here norms in the second run write into copies, so that they are updated once.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..arguments import require_strings
from ..errors import ArgumentError, ContractError, names_in
from ..tracing.copies import structural_copy, without_values
from ..tracing.execution_order import meta_images, run_on_meta
from .parts import backbone_in


def recompute(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> None:
    """Keep only the inputs of some modules of `model` for the backward pass, in place, and compute the rest again.

    kind: the class of block, or paths of modules such as the names of levels: `model.feature_info.names()`.

    It is done in training mode alone, and where gradients are on; values, gradients and names of parameters stay.
    Raises ArgumentError if there is no such module, or if it is a container that the backbone never calls, because it
    calls its entries.
    """
    chosen = _chosen(model, kind)
    writes = _writes(model, chosen)
    idle = [path for path in chosen if writes.get(path, False) is None]
    if idle and (not isinstance(kind, type) or len(idle) == len(chosen)):
        raise ArgumentError(
            f"{idle} are never called themselves, only what is in them is: pass the paths or the class of that"
        )
    for path, module in chosen.items():
        vars(module)["forward"] = partial(_recomputed, module, writes.get(path) is not False)


def _chosen(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> dict[str, nn.Module]:
    """The modules asked for, by path."""
    modules = dict(model.named_modules())
    if isinstance(kind, type):
        found = {path: module for path, module in modules.items() if isinstance(module, kind)}
        if not found:
            kinds = sorted({type(module).__name__ for module in modules.values()})
            raise ArgumentError(f"no module is a {kind.__name__}; there are {names_in(kinds, 30)}")
        return found
    paths = [kind] if isinstance(kind, str) else require_strings(kind, "kind", str, "paths of modules")
    missing = [path for path in paths if path not in modules]
    if missing or not paths:
        blocks = [path for path in modules if path and path.count(".") < 2]
        raise ArgumentError(f"no module is called {names_in(missing)}; there are {names_in(blocks)}")
    return {path: modules[path] for path in paths}


@torch.inference_mode(False)  # where tensors count their changes
def _writes(model: nn.Module, chosen: dict[str, nn.Module]) -> dict[str, bool | None]:
    """Whether a chosen module of the backbone changes its inputs in place, by path; None if it is never called.

    Nothing is known of modules that are not in the backbone, and of a backbone that needs values to run.
    """
    try:
        part = backbone_in(model)
    except ContractError:
        return {}
    inside = {id(module) for module in part.module.modules()}
    writes: dict[str, bool | None] = {path: None for path, module in chosen.items() if id(module) in inside}
    twin = structural_copy(part.module, without_values).train()
    for path in writes:
        module, watch = twin.get_submodule(path.removeprefix(part.prefix)), _Watch(writes, path)
        module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(watch.leave)
    try:
        run_on_meta(twin, meta_images(part.module))
    except ContractError:
        return {}
    return writes


class _Watch:
    """Hooks on the module at `path` that note in `writes` whether its inputs are others after a call than before."""

    def __init__(self, writes: dict[str, bool | None], path: str) -> None:
        self.writes, self.path = writes, path
        self._given: list[list[tuple[Tensor, int]]] = []  # of the calls that are running

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._given.append([(leaf, leaf._version) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def leave(self, *_: Any) -> None:
        changed = any(leaf._version != version for leaf, version in self._given.pop())
        self.writes[self.path] = changed or bool(self.writes[self.path])


def _recomputed(module: nn.Module, writes: bool, *args: Any, **kwargs: Any) -> Any:
    """In the place of a module's `forward`. writes: it may change its inputs in place."""
    forward = partial(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))  # the caller may change its lists before the second run

    def run(*leaves: Any) -> Any:
        own = [leaf.clone() if writes and isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(own, spec)
        return forward(*args, **kwargs)

    if torch.compiler.is_compiling():  # a compiled graph updates statistics once by itself
        return checkpoint(run, *leaves, use_reentrant=False)
    return checkpoint(run, *leaves, use_reentrant=False, context_fn=partial(_runs, module))


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
