"""Activation checkpointing (https://arxiv.org/abs/1604.06174): modules run again in the backward pass to save memory.

It uses the non-reentrant `torch.utils.checkpoint`, so that every parameter gets its gradient, also if no input requires
one. PyTorch alone would update running statistics of norms in both runs, twice per step; here norms write into copies
in the second run, so that statistics are updated once.
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
from .backbone_part import backbone_in


def recompute(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> None:
    """Enable activation checkpointing for some modules of `model`, in place.

    Only the inputs of these modules are kept for the backward pass, which recomputes the rest. It acts in training mode
    with gradients enabled only. Outputs, gradients and parameter names do not change.

    Args:
        model: the model.
        kind: the class of the modules, or paths of modules, such as the names of levels
            `model.feature_info.names()`.

    Raises:
        ArgumentError: there is no such module, or it is a container whose entries are called instead of itself.
    """
    selected = _select_modules(model, kind)
    writes = _in_place_writes(model, selected)
    idle = [path for path in selected if writes.get(path, False) is None]
    if idle and (not isinstance(kind, type) or len(idle) == len(selected)):
        raise ArgumentError(
            f"{idle} are never called themselves, only what is in them is: pass the paths or the class of that"
        )
    for path, module in selected.items():
        vars(module)["forward"] = partial(_checkpointed_forward, module, writes.get(path) is not False)


def _select_modules(model: nn.Module, kind: type[nn.Module] | str | Sequence[str]) -> dict[str, nn.Module]:
    """The modules of a class or with these paths, by path."""
    modules = dict(model.named_modules())
    if isinstance(kind, type):
        instances = {path: module for path, module in modules.items() if isinstance(module, kind)}
        if not instances:
            kinds = sorted({type(module).__name__ for module in modules.values()})
            raise ArgumentError(f"no module is a {kind.__name__}; there are {names_in(kinds, 30)}")
        return instances
    paths = [kind] if isinstance(kind, str) else require_strings(kind, "kind", str, "paths of modules")
    missing = [path for path in paths if path not in modules]
    if missing or not paths:
        blocks = [path for path in modules if path and path.count(".") < 2]
        raise ArgumentError(f"no module is called {names_in(missing)}; there are {names_in(blocks)}")
    return {path: modules[path] for path in paths}


@torch.inference_mode(False)  # inference tensors have no version counters
def _in_place_writes(model: nn.Module, selected: dict[str, nn.Module]) -> dict[str, bool | None]:
    """Whether a module of the backbone modifies its inputs in place, by path; None if it is never called.

    Modules outside the backbone are left out, and all are if the backbone cannot run on the meta device.
    """
    try:
        part = backbone_in(model)
    except ContractError:
        return {}
    inside = {id(module) for module in part.module.modules()}
    writes: dict[str, bool | None] = {path: None for path, module in selected.items() if id(module) in inside}
    twin = structural_copy(part.module, without_values).train()
    for path in writes:
        module, hooks = twin.get_submodule(path.removeprefix(part.prefix)), _WriteHooks(writes, path)
        module.register_forward_pre_hook(hooks.enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(hooks.leave)
    try:
        run_on_meta(twin, meta_images(part.module))
    except ContractError:
        return {}
    return writes


class _WriteHooks:
    """Hooks on the module at `path` that record in `writes` whether a call modifies its inputs in place."""

    def __init__(self, writes: dict[str, bool | None], path: str) -> None:
        self.writes, self.path = writes, path
        self._inputs: list[list[tuple[Tensor, int]]] = []  # of running calls: tensors and their versions

    def enter(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs.append([(leaf, leaf._version) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def leave(self, *_: Any) -> None:
        changed = any(leaf._version != version for leaf, version in self._inputs.pop())
        self.writes[self.path] = changed or bool(self.writes[self.path])


def _checkpointed_forward(module: nn.Module, writes: bool, *args: Any, **kwargs: Any) -> Any:
    """Replacement for a module's `forward`. writes: the module may modify its inputs in place."""
    forward = partial(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    leaves, spec = tree_flatten((args, kwargs))  # the caller may change its lists before the second run

    def run(*leaves: Any) -> Any:
        inputs = [leaf.clone() if writes and isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(inputs, spec)
        return forward(*args, **kwargs)

    if torch.compiler.is_compiling():  # a compiled graph updates statistics only once
        return checkpoint(run, *leaves, use_reentrant=False)
    return checkpoint(run, *leaves, use_reentrant=False, context_fn=partial(_run_contexts, module))


def _run_contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The context managers of the first and the second run."""
    return nullcontext(), _preserve_statistics(module)


@contextmanager
def _preserve_statistics(module: nn.Module) -> Iterator[None]:
    """Let norms write into copies of their running statistics."""
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase) and norm.track_running_stats]
    originals = [norm._buffers for norm in norms]
    for norm in norms:
        norm._buffers = {name: None if value is None else value.clone() for name, value in norm._buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, originals, strict=True):
            norm._buffers = buffers
