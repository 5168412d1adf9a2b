"""A forward as a list of operations, built from two recordings with different batches.

Arguments that are equal in both are constants, and arguments proportional to the batch size become PerImage. Operations
that depend on weights alone are computed once. If anything else differs, there is no program.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .forward_trace import Recording, Step, UnrecordedError, record, tensors_of
from .symbolic_sizes import ModelTensor, Name, SymbolicSize, TracedValue

aten = torch.ops.aten

# Candidates for the sides of the second recording's images, and their number. A side in proportion to the batch sizes
# is not used.
OTHER_SIDES, OTHER_BATCH = (96, 128, 160, 192), 5
# Operations whose result depends on the dtype of their input, but not on its values.
SHAPES_ONLY = {aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty}

Axes = tuple[tuple[int, int], ...]  # the lengths of each axis of a tensor in both recordings


@dataclass(frozen=True, slots=True)
class PerImage:
    """The number `times * N` for a batch of N images."""

    times: int


@dataclass(frozen=True, slots=True)
class Call:
    """An operation. Its arguments may contain TracedValue, ModelTensor, SymbolicSize and PerImage."""

    number: int
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """The operations that compute `returned` from a batch of any number of images.

    Attributes:
        calls: the operations in their order.
        constants: values of the tensors that do not depend on the images.
        axes: sizes of every tensor in both recordings.
        dtypes: dtype of every tensor.
        returned: the tensors that the model returns.
        any_size: whether images may have another size than the recorded ones.
    """

    calls: list[Call]
    constants: dict[Name, Tensor]
    axes: dict[TracedValue, Axes]
    dtypes: dict[TracedValue, torch.dtype]
    returned: list[Name]
    any_size: bool


def program_of(model: nn.Module, images: Tensor, sizes: bool) -> Program:
    """The program of `model(images)`, a tuple of tensors.

    Args:
        model: the model, which runs two to four times.
        images: (2, C, H, W).
        sizes: whether to try images of another size, so that the program may accept any.

    Raises:
        UnrecordedError: the forward cannot be repeated as operations on tensors.
    """
    first = record(model, images)
    second = _of_another_size(model, images, first) if sizes else None
    if second is not None:
        try:
            return _merge(model, first, second, any_size=True)
        except UnrecordedError:
            pass  # its code branches on sizes, or computes with them
    three = images[[0, 1, 0]]
    try:
        return _merge(model, first, record(model, three), any_size=False)
    except UnrecordedError:  # its code may have cached values for this size in the first forward
        return _merge(model, record(model, images), record(model, three), any_size=False)


def _of_another_size(model: nn.Module, images: Tensor, first: Recording) -> Recording | None:
    """A recording with images of another size; None if the model refuses them, or if sizes would stay ambiguous."""
    _, chs, height, width = images.shape
    ambiguous = {height, width, height * OTHER_BATCH / len(images), width * OTHER_BATCH / len(images)}
    sides = [side for side in OTHER_SIDES if side not in ambiguous]
    try:
        second = record(model, images.new_zeros(OTHER_BATCH, chs, sides[0], sides[1]))
    except UnrecordedError:
        return None
    return None if _broadcasts(first, second) else second


def _broadcasts(first: Recording, second: Recording) -> bool:
    """Whether an axis that depends on the image size has a length of 1 in one recording, so that it broadcasts."""
    steps = zip(first.steps, second.steps, strict=False)
    pairs = (pair for one, other in steps for axes in _axes(one, other) for pair in axes)
    return any(1 in pair and pair[0] != pair[1] for pair in pairs)


def _axes(one: Step, other: Step) -> Iterator[Axes]:
    """The axes of each tensor that a step returned."""
    for first, second in zip(one.returned, other.returned, strict=False):
        yield tuple(zip(first.shape, second.shape, strict=False))


def _merge(model: nn.Module, first: Recording, second: Recording, any_size: bool) -> Program:
    """The program that both recordings are of. UnrecordedError if they differ in more than sizes."""
    operations = [[step.operation for step in recording.steps] for recording in (first, second)]
    same = operations[0] == operations[1] and first.returned == second.returned and first.guards == second.guards
    if not same or not _are_equal(first.literals, second.literals):
        raise UnrecordedError("other images take other operations")
    batches = len(first.images), len(second.images)
    image_axes = tuple(zip(first.images.shape, second.images.shape, strict=True))
    builder = _ProgramBuilder(
        Program([], {}, {TracedValue(-1): image_axes}, {TracedValue(-1): first.images.dtype}, first.returned, any_size)
    )
    builder.program.constants.update((ModelTensor(path), tensor.detach()) for path, tensor in tensors_of(model))
    builder.program.constants.update(first.literals)
    for number, (one, other) in enumerate(zip(first.steps, second.steps, strict=True)):
        pair = (one.args, one.kwargs), (other.args, other.kwargs)
        one_args, other_args = pair if any_size else tree_map(_length, pair)
        call = Call(number, one.operation, *_generalize(one_args, other_args, batches))
        builder.add(call, one, list(_axes(one, other)))
    builder.require_current(first.returned)
    return _without_unused(builder.program)


def _are_equal(one: Mapping[Name, Tensor], other: Mapping[Name, Tensor]) -> bool:
    return list(one) == list(other) and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _length(argument: Any) -> Any:
    """The recorded length of a symbolic size; any other argument itself."""
    return argument.length if isinstance(argument, SymbolicSize) else argument


def _generalize(one: Any, other: Any, batches: tuple[int, int]) -> Any:
    """The arguments of a step for any batch size. UnrecordedError if they are neither equal nor in proportion to it."""
    if isinstance(one, tuple | list) and type(one) is type(other) and len(one) == len(other):
        return type(one)(_generalize(a, b, batches) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return {name: _generalize(value, other[name], batches) for name, value in one.items()}
    if type(one) is type(other) and one == other:
        return one
    if type(one) is int and type(other) is int:
        times, rest = divmod(one, batches[0])
        if rest == 0 and times * batches[1] == other:
            return PerImage(times)
    raise UnrecordedError(f"other images take other arguments: {one} and {other}")


class _ProgramBuilder:
    """Adds calls to a program, and computes those that do not depend on the images."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._stale: set[Name] = set()

    def add(self, call: Call, step: Step, axes: list[Axes]) -> None:
        """Add a call, or its result if that is constant. step: its first recording. axes: of the returned tensors."""
        several = step.several
        names = [TracedValue(call.number, place if several else None) for place in range(len(step.returned))]
        constant = self._constant(call)
        if constant is None:
            self.require_current(leaves_of((call.args, call.kwargs), TracedValue))
            self._stale.update(step.also_changed)
            self.program.calls.append(call)
        else:
            self.program.constants.update(zip(names, constant, strict=True))
        for name, lengths, tensor in zip(names, axes, step.returned, strict=True):
            self.program.axes[name], self.program.dtypes[name] = lengths, tensor.dtype

    def require_current(self, names: Iterable[Name]) -> None:
        """Raise UnrecordedError if one of these tensors was changed through another view of its memory."""
        if not self._stale.isdisjoint(names):
            raise UnrecordedError("a tensor is read after another view of it was written to")

    def _constant(self, call: Call) -> list[Tensor] | None:
        """The tensors that a call returns; None if they depend on the images."""
        args, kwargs = call.args, call.kwargs
        if call.operation.overloadpacket in SHAPES_ONLY and isinstance(args[0], TracedValue):
            args = (torch.empty(0, dtype=self.program.dtypes[args[0]]), *args[1:])
        if leaves_of((args, kwargs), SymbolicSize | PerImage):
            return None
        if not all(name in self.program.constants for name in leaves_of((args, kwargs), TracedValue | ModelTensor)):
            return None
        args, kwargs = tree_map(self._value, (args, kwargs))
        with torch.inference_mode(False), torch.no_grad():
            returned = call.operation(*args, **kwargs)
        return [returned] if isinstance(returned, Tensor) else list(returned)

    def _value(self, argument: Any) -> Any:
        return self.program.constants[argument] if isinstance(argument, TracedValue | ModelTensor) else argument


def leaves_of(arguments: Any, kind: Any) -> list[Any]:
    """The leaves of nested arguments that are of a class."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, kind)]


def _without_unused(program: Program) -> Program:
    """Drop calls whose results are not used, in place, and return the program."""
    needed = {name.step for name in program.returned if isinstance(name, TracedValue)}
    kept: list[Call] = []
    for call in reversed(program.calls):
        if call.number in needed:
            kept.append(call)
            arguments = (call.args, call.kwargs)
            needed.update(name.step for name in leaves_of(arguments, TracedValue))
            needed.update(size.tensor.step for size in leaves_of(arguments, SymbolicSize))
    program.calls[:] = reversed(kept)
    return program
