"""Hooks of the thread that made them, which copies of their module are made without."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

TABLES = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
)
_changing = threading.Lock()


class ThreadHook:
    """Calls `hook` in the thread that made this alone, and not where a forward is traced or compiled.

    Another thread has its own images, and its own stack of modes; a graph that held the hook would outlive it.
    """

    def __init__(self, hook: Callable[..., None]) -> None:
        self._hook, self._thread = hook, threading.get_ident()

    def __call__(self, *args: Any) -> None:
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return
        if threading.get_ident() == self._thread:
            self._hook(*args)


def install(
    module: nn.Module, after: Callable[..., None], before: Callable[..., None] | None = None, **options: bool
) -> Callable[[], None]:
    """Hook this thread's calls of `module`; returns what removes the hooks, as often as it is called.

    options: of `register_forward_hook`, for `after`.
    """
    with _changing:
        handles = [module.register_forward_hook(ThreadHook(after), **options)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(ThreadHook(before)))
        vars(module)["__reduce_ex__"] = partial(_reduced, module)  # where copy and pickle look for it

    def remove() -> None:
        with _changing:
            for handle in handles:
                handle.remove()
            if not _own(module):
                vars(module).pop("__reduce_ex__", None)

    return remove


def _own(module: nn.Module) -> set[int]:
    """The hooks of this kind that the module has, by their numbers."""
    hooks = [*module._forward_hooks.items(), *module._forward_pre_hooks.items()]
    return {number for number, hook in hooks if isinstance(hook, ThreadHook)}


def _reduced(module: nn.Module, protocol: Any) -> Any:
    """What copies and pickles are made of: the module without hooks of this kind."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    make, args, state, *others = reduced
    own = _own(module)
    kept = {name: value for name, value in state.items() if name != "__reduce_ex__"}
    kept |= {name: OrderedDict((n, v) for n, v in [*state[name].items()] if n not in own) for name in TABLES}
    return make, args, kept, *others
