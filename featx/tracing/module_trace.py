"""What each module of a model returns and depends on, traced on a copy without values."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..arguments import wrong
from ..errors import ContractError, InputError
from .copies import structural_copy, with_own_buffers, without_values
from .execution_order import meta_images
from .meta_kernels import quickly
from .third_party_errors import REFUSED, passed_on, third_party

# Added to the sides of the images to see what grows with them, and how much: multiples of most patches and strides.
GROWTH = (672, 1344)

# Added to see what happens to sides that are multiples of nothing.
ODD = (71, 33)


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
    twin = structural_copy(model, without_values if meta else with_own_buffers).train(training)
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


@dataclass(frozen=True, slots=True)
class Survey:
    """Runs of one model: in eval mode on `images`, and if those run on larger and on odd ones, and in training mode.

    argument: the keyword argument under which the model takes images; None is its first positional one.
    """

    images: Tensor
    argument: str | None
    runs: tuple[Run, ...] = field(repr=False)

    @property
    def measured(self) -> list[Run]:
        """The first run, and the one on larger images if there is one: the same multiples of patches and strides."""
        return [run for run in self.runs if not run.training and run.images[2:] in (self._size(), self._size(GROWTH))]

    def _size(self, growth: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        height, width = (side + more for side, more in zip(self.images.shape[2:], growth, strict=True))
        return height, width

    def again(self, model: nn.Module) -> "Survey":
        """The same runs of another model; raises ThirdPartyError if that does not run."""
        runs = [observe(model, _like(self.images, run.images), self.argument, run.training) for run in self.runs]
        return Survey(self.images, self.argument, tuple(runs))


def survey(model: nn.Module, example: Tensor | None = None, argument: str | None = None) -> Survey:
    """Run copies of `model` on images as large as `example`; ContractError if it does not run.

    That is on the meta device, without values; if the model needs those, it runs on `example` itself, once.
    """
    if example is not None and (not isinstance(example, Tensor) or example.ndim != 4):
        what = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise InputError(f"example: expected images (N, C, H, W), got {what}")
    if argument is not None and not isinstance(argument, str):
        raise wrong("argument", argument, "the name of a keyword argument of the model")
    images = meta_images(model) if example is None else torch.empty(2, *example.shape[1:], device="meta")
    images = images if example is None else images.to(example.dtype)
    try:
        first = observe(model, images, argument, training=False)
    except REFUSED as error:
        if example is None or example.is_meta:
            raise _does_not_run(model, images, error) from error
        return Survey(example, argument, (_computed(model, example, argument),))
    sizes = [[side + more for side, more in zip(images.shape[2:], growth, strict=True)] for growth in (GROWTH, ODD)]
    others = [*((_like(images, (*images.shape[:2], *size)), False) for size in sizes), (images, True)]
    runs = [run for batch, training in others if (run := _run_of(model, batch, argument, training))]
    return Survey(images, argument, (first, *runs))


def _computed(model: nn.Module, example: Tensor, argument: str | None) -> Run:
    try:
        return observe(model, example, argument, training=False)
    except REFUSED as error:
        raise _does_not_run(model, example, error) from error


def _run_of(model: nn.Module, images: Tensor, argument: str | None, training: bool) -> Run | None:
    """None if the model does not take these images or does not run in this mode, which is its right."""
    try:
        return observe(model, images, argument, training)
    except REFUSED:
        return None


def _like(images: Tensor, shape: Sequence[int]) -> Tensor:
    return images if tuple(shape) == tuple(images.shape) else images.new_empty(shape)


def _does_not_run(model: nn.Module, images: Tensor, error: Exception) -> ContractError:
    where = "meta tensors" if images.is_meta else "images"
    hint = "pass example=, images that it takes" if images.is_meta else "expected images that it takes"
    return ContractError(f"{type(model).__name__} does not run on {where} {tuple(images.shape)}: {error} ({hint})")
