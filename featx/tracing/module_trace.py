"""Trace of a forward: the tree of module calls, and the operations in them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from .meta_kernels import run_with_meta_rule


@dataclass(eq=False, slots=True)
class ModuleCall:
    """A call of a module.

    Attributes:
        path: path of the module.
        caller: the call of the module that called it; None for the root.
        inputs: its positional and keyword arguments.
        children: the calls that it made, in order.
        output: the value that it returned.
        leaves: the tensors in the output.
        versions: the version counter of each leaf at the time of the return.
    """

    path: str
    caller: "ModuleCall | None"
    inputs: tuple[Any, ...]
    children: list["ModuleCall"] = field(default_factory=list)
    output: Any = None
    leaves: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()

    def end(self, output: Any) -> None:
        self.output, self.leaves = output, tuple(tensors_in(output))
        self.versions = tuple(leaf._version for leaf in self.leaves)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the first tensor among the arguments."""
        return next((tuple(tensor.shape) for tensor in tensors_in(self.inputs)), None)

    def overwritten(self, value: Tensor) -> bool:
        """Whether the leaf `value` was changed in place after the call."""
        return any(leaf is value and leaf._version != v for leaf, v in zip(self.leaves, self.versions, strict=True))


@dataclass(eq=False, slots=True)
class Operation:
    """An operation: its arguments by name, the tensors it returned, and the innermost module call around it."""

    kind: Any
    arguments: dict[str, Any]
    outputs: tuple[Tensor, ...]
    call: ModuleCall

    def read(self) -> Iterator[Tensor]:
        """The operands, including those that it writes to."""
        return operands(self.arguments.values())

    def written(self) -> Iterator[Tensor]:
        """The operands that it writes to."""
        return operands(self.arguments.get(name) for name in _argument_names(self.kind)[1])


@dataclass(eq=False)
class ModuleTrace:
    """The trace of a forward of `model` for `images`.

    Attributes:
        training: whether the model was in training mode.
        root: the call of the traced function, whose output is what the function returned.
        events: operations and module calls, in the order in which they ended. The root is the last.
    """

    model: nn.Module
    images: Tensor
    training: bool
    root: ModuleCall
    events: list[ModuleCall | Operation] = field(default_factory=list)

    @cached_property
    def calls(self) -> dict[str, list[ModuleCall]]:
        """The calls of each module by path, in the order in which they ended."""
        result: dict[str, list[ModuleCall]] = {}
        for event in self.events[:-1]:
            if isinstance(event, ModuleCall):
                result.setdefault(event.path, []).append(event)
        return result

    @property
    def operations(self) -> Iterator[Operation]:
        return (event for event in self.events if isinstance(event, Operation))

    @cached_property
    def _readers(self) -> dict[int, list[Operation]]:
        result: dict[int, list[Operation]] = {}
        for operation in self.operations:
            for storage in {storage_of(tensor) for tensor in operation.read()}:
                result.setdefault(storage, []).append(operation)
        return result

    def readers(self, tensor: Tensor) -> list[Operation]:
        """The operations that read the tensor or a view of it."""
        return self._readers.get(storage_of(tensor), [])

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether the root returned the tensor or a view of it."""
        return storage_of(tensor) in {storage_of(leaf) for leaf in self.root.leaves}


def trace_modules(
    twin: nn.Module,
    images: Tensor,
    forward: Callable[[Any, Tensor], Any],
    training: bool = False,
    before_hooks: bool = False,
) -> ModuleTrace:
    """The trace of `forward(twin, images)`, without gradients.

    PyTorch's random state is restored afterwards. Exceptions of `forward` are passed on.

    Args:
        twin: a copy of the model that no other thread runs, because hooks are added to it meanwhile.
        images: (N, C, H, W).
        forward: the function to trace.
        training: whether to run in training mode.
        before_hooks: record the outputs of modules before their forward hooks run, instead of afterwards.
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
    """Records operations and module calls. The trace keeps their tensors alive, so that ids stay unique."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, so that PyTorch does not import its compiler, which takes seconds, to disable it for this mode."""
        return False

    def __init__(self, trace: ModuleTrace) -> None:
        super().__init__()
        self.events, self.stack = trace.events, [trace.root]

    def watch(self, twin: nn.Module, before_hooks: bool) -> list[RemovableHandle]:
        """Register hooks on every module, which the returned handles remove."""
        handles = list[RemovableHandle]()
        for path, module in twin.named_modules():
            enter = partial(self.enter, path)
            handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(self.leave, prepend=before_hooks))
        return handles

    def enter(self, path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ModuleCall(path, self.stack[-1], (*args, *kwargs.values()))
        self.stack[-1].children.append(call)
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
        output = run_with_meta_rule(func, args, kwargs)
        arguments = {**dict(zip(_argument_names(func)[0], args, strict=False)), **kwargs}
        self.events.append(Operation(func, arguments, tuple(operands((output,))), self.stack[-1]))
        return output


@cache
def _argument_names(kind: Any) -> tuple[list[str], list[str]]:
    """Names of all arguments of an operation, and of those that it writes to."""
    schema = kind._schema.arguments
    written = [argument.name for argument in schema if argument.alias_info and argument.alias_info.is_write]
    return [argument.name for argument in schema], written


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested containers, including subclasses of dict, list and tuple."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, dict | list | tuple):  # of a class that is not registered with PyTorch
            yield from tensors_in(list(leaf.values() if isinstance(leaf, dict) else leaf))


def operands(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or outputs of an operation, including those in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from operands(value)


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
