"""A forward as it ran, recorded on a copy: its operations, and the calls of modules with those of their children."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .meta_kernels import quickly


@dataclass(eq=False, slots=True)
class ModuleCall:
    """One call of the module at a path; `caller` is that of the module which made it.

    given: what it was called with, by position and by name. output: what it returned. leaves: the tensors in that, each
    with its version, which counts changes in place.
    """

    path: str
    caller: "ModuleCall | None"
    given: tuple[Any, ...]
    inner: list["ModuleCall"] = field(default_factory=list)
    output: Any = None
    leaves: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()

    def end(self, output: Any) -> None:
        self.output, self.leaves = output, tuple(tensors_in(output))
        self.versions = tuple(leaf._version for leaf in self.leaves)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the first tensor it was called with."""
        return next((tuple(tensor.shape) for tensor in tensors_in(self.given)), None)

    def overwritten(self, value: Tensor) -> bool:
        """Whether `value`, one of the leaves, was changed in place after the call."""
        return any(leaf is value and leaf._version != v for leaf, v in zip(self.leaves, self.versions, strict=True))


@dataclass(eq=False, slots=True)
class Operation:
    """One operation: its arguments by name, the tensors it returned, and the call of the innermost module around it."""

    kind: Any
    arguments: dict[str, Any]
    outputs: tuple[Tensor, ...]
    call: ModuleCall

    def read(self) -> Iterator[Tensor]:
        """The tensors it was given, those that it writes to among them."""
        return operands(self.arguments.values())

    def written(self) -> Iterator[Tensor]:
        return operands(self.arguments.get(name) for name in _names(self.kind)[1])


@dataclass(eq=False)
class ModuleTrace:
    """What `model` did in training or eval mode when it was run on `images`.

    root: stands for what ran the model, and returned what was asked of it. events: operations and calls, in the order
    they ended; the root is the last.
    """

    model: nn.Module
    images: Tensor
    training: bool
    root: ModuleCall
    events: list[ModuleCall | Operation] = field(default_factory=list)

    @cached_property
    def calls(self) -> dict[str, list[ModuleCall]]:
        """By the path of the module; those that ended first come first."""
        found: dict[str, list[ModuleCall]] = {}
        for event in self.events[:-1]:
            if isinstance(event, ModuleCall):
                found.setdefault(event.path, []).append(event)
        return found

    @property
    def operations(self) -> Iterator[Operation]:
        return (event for event in self.events if isinstance(event, Operation))

    @cached_property
    def _readers(self) -> dict[int, list[Operation]]:
        found: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for storage in {storage_of(tensor) for tensor in operation.read()}:
                found.setdefault(storage, []).append(operation)
        return found

    def readers(self, tensor: Tensor) -> list[Operation]:
        """The operations that read the tensor, or any view of it."""
        return self._readers.get(storage_of(tensor), [])

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether the tensor itself, or a view of it, is returned in the end."""
        return storage_of(tensor) in {storage_of(leaf) for leaf in self.root.leaves}


def trace_modules(
    twin: nn.Module,
    images: Tensor,
    forward: Callable[[Any, Tensor], Any],
    training: bool = False,
    before_hooks: bool = False,
) -> ModuleTrace:
    """What happens in `forward(twin, images)`, on a copy that nobody else runs; what that raises is raised.

    A module's output is what its hooks made of it, or with `before_hooks` what they are given. There are no gradients,
    and the caller's random numbers are afterwards as before.
    """
    twin.train(training)
    trace = ModuleTrace(twin, images, training, ModuleCall("", None, (images,)))
    recorder = _Recorder(trace)
    handles = recorder.watch(twin, before_hooks)
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]), recorder:
            recorder.end(forward(twin, images))
    finally:
        for handle in handles:
            handle.remove()
    return trace


class _Recorder(TorchDispatchMode):
    """Keeps every operation and every call, which keeps their tensors alive: what identifies one is not used again."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What PyTorch asks before it imports its compiler, for seconds, to keep it away from such a mode."""
        return False

    def __init__(self, trace: ModuleTrace) -> None:
        super().__init__()
        self.events, self.stack = trace.events, [trace.root]

    def watch(self, twin: nn.Module, before_hooks: bool) -> list[RemovableHandle]:
        """Put hooks on every module, which the handles remove."""
        handles = list[RemovableHandle]()
        for path, module in twin.named_modules():
            enter = partial(self.enter, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self.leave, prepend=before_hooks))
        return handles

    def enter(self, path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ModuleCall(path, self.stack[-1], (*args, *kwargs.values()))
        self.stack[-1].inner.append(call)
        self.stack.append(call)

    def leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.end(output)

    def end(self, output: Any) -> None:
        call = self.stack.pop()
        call.end(output)
        self.events.append(call)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        output = quickly(func, args, kwargs)
        arguments = {**dict(zip(_names(func)[0], args, strict=False)), **kwargs}
        self.events.append(Operation(func, arguments, tuple(operands((output,))), self.stack[-1]))
        return output


@cache
def _names(kind: Any) -> tuple[list[str], list[str]]:
    """Of an operation's arguments, and of those that it writes to."""
    arguments = kind._schema.arguments
    written = [one.name for one in arguments if one.alias_info is not None and one.alias_info.is_write]
    return [one.name for one in arguments], written


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns, also in classes derived from containers."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, dict | list | tuple):  # PyTorch takes only its own and registered classes apart
            yield from tensors_in(list(leaf.values() if isinstance(leaf, dict) else leaf))


def operands(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that an operation is given or returns, which are in lists at most."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from operands(value)


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
