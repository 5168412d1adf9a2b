"""What each module of a model returns and depends on, seen on a copy without values while the model stays untouched."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ContractError
from .refusals import ThirdPartyError, passed_on, third_party
from .shortcuts import quickly

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    given: shape of the first tensor it was called with. output: what it returned. leaves: the tensors in that, each
    with its `sources`, a bit for every module and parameter it depends on (see `bits`), and with its version, which
    counts changes in place.
    """

    given: tuple[int, ...] | None
    output: Any
    leaves: tuple[Tensor, ...]
    sources: tuple[int, ...]
    versions: tuple[int, ...]

    def sources_of(self, value: Tensor) -> int:
        return next(sources for leaf, sources in zip(self.leaves, self.sources, strict=True) if leaf is value)

    def overwritten(self, value: Tensor) -> bool:
        """Whether `value`, one of the leaves, was changed in place after the call."""
        return any(leaf is value and leaf._version != v for leaf, v in zip(self.leaves, self.versions, strict=True))


@dataclass(frozen=True, slots=True)
class Run:
    """A forward for images of that shape: the calls of each called module, by path, in the order they ended."""

    images: tuple[int, ...]
    training: bool
    calls: dict[str, list[Call]] = field(default_factory=dict)


def bits(model: nn.Module) -> dict[str, int]:
    """A bit for each path of a module and each name of a parameter."""
    names = [*(path for path, _ in model.named_modules()), *(name for name, _ in model.named_parameters())]
    return {name: 1 << i for i, name in enumerate(names)}


def observe(model: nn.Module, images: Tensor, argument: str | None, training: bool) -> Run:
    """Run a copy of `model` on `images`, on the meta device if they are there, with every module watched.

    The copy shares the values of parameters otherwise, and has buffers of its own. Raises ThirdPartyError if the model
    does not run.
    """
    meta = images.is_meta
    twin = structural_copy(model, without_values if meta else _shared).train(training)
    run, flow, bit = Run(tuple(images.shape), training), _Flow(), bits(twin)
    for name, parameter in twin.named_parameters():
        flow.mark(parameter, bit[name])
    for path, module in twin.named_modules():
        module.register_forward_pre_hook(_Enter(flow, bit[path]), prepend=True)
        module.register_forward_hook(_Leave(flow, bit[path], run.calls, path), with_kwargs=True)
    with _undisturbed(), flow, torch.device("meta") if meta else nullcontext():
        third_party(call, twin, images, argument)
    return run


def call(model: nn.Module, images: Tensor, argument: str | None) -> Any:
    """What `model` returns for `images`, passed as that keyword argument, or as the first positional one."""
    return passed_on(model, images) if argument is None else passed_on(model, **{argument: images})


def structural_copy(module: Module, of: Callable[[Tensor], Tensor] | None = None, keep: Iterable[Any] = ()) -> Module:
    """A copy of `module` that shares every tensor with it, or holds `of(tensor)` instead, and shares what to `keep`."""
    memo: dict[int, Any] = {id(thing): thing for thing in keep}
    for tensor in _tensors(module):
        memo[id(tensor)] = of(tensor) if of else tensor
    for part in module.modules():  # each has several empty tables, which deepcopy would take to pieces
        memo.update((id(value), OrderedDict()) for value in vars(part).values() if _is_empty_table(value))
    alive = list(memo.values())  # an id must not be reused while the memo is
    try:
        copied = third_party(copy.deepcopy, module, memo)
    except ThirdPartyError as error:
        raise ContractError(f"{type(module).__name__} cannot be copied: {error}") from error
    if of is None and {id(p) for p in copied.parameters()} != {id(p) for p in module.parameters()}:
        raise ContractError(
            f"{type(module).__name__} makes new parameters when it is copied: its copy cannot share them"
        )
    del alive
    return copied


def _is_empty_table(value: Any) -> bool:
    return type(value) is OrderedDict and not value


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))


def without_values(tensor: Tensor) -> Tensor:
    """A tensor or parameter on the meta device, like the given one."""
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _shared(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No gradients, counted in-place changes, and the caller's random numbers afterwards as before."""
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        yield


class _Flow(TorchDispatchMode):
    """Follows through every operation which modules and parameters each tensor depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.within = [0]
        self._own: dict[int, int] = {}
        self._written: dict[int, int] = {}  # by storage, as a view may be written to and its base read
        self._alive: list[Any] = []  # an id must not be reused

    def mark(self, tensor: Tensor, sources: int) -> None:
        if id(tensor) not in self._own:
            self._alive.append(tensor)
        self._own[id(tensor)] = self._own.get(id(tensor), 0) | sources

    def sources(self, tensor: Tensor) -> int:
        return self._own.get(id(tensor), 0) | self._written.get(_storage(tensor), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        output = quickly(func, args, kwargs)
        sources = self.within[-1]
        for tensor in _operands((*args, *kwargs.values())):
            sources |= self.sources(tensor)
        for tensor in _operands((output,)):
            self.mark(tensor, sources)
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in _operands((value,)):
                    self._alive.append(tensor)
                    storage = _storage(tensor)
                    self._written[storage] = self._written.get(storage, 0) | sources
        return output


class _Enter:
    def __init__(self, flow: _Flow, bit: int) -> None:
        self.flow, self.bit = flow, bit

    def __call__(self, *_: Any) -> None:
        self.flow.within.append(self.flow.within[-1] | self.bit)


class _Leave:
    def __init__(self, flow: _Flow, bit: int, calls: dict[str, list[Call]], path: str) -> None:
        self.flow, self.bit, self.calls, self.path = flow, bit, calls, path

    def __call__(self, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.flow.within.pop()
        leaves = tuple(_tensors_in(output))
        for leaf in leaves:
            self.flow.mark(leaf, self.bit)
        sources = tuple(self.flow.sources(leaf) for leaf in leaves)
        versions = tuple(leaf._version for leaf in leaves)
        given = next((tuple(tensor.shape) for tensor in _tensors_in((args, kwargs))), None)
        self.calls.setdefault(self.path, []).append(Call(given, output, leaves, sources, versions))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns, also in classes derived from containers."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, dict | list | tuple):  # PyTorch takes only its own and registered classes apart
            yield from _tensors_in(list(leaf.values() if isinstance(leaf, dict) else leaf))


def _operands(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors that an operation is given or returns, which are in lists at most."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _operands(value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
