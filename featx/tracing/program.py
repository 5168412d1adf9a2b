"""The operations of a forward as data, from two recordings of it.

What is alike in both is constant, what grows with the number of images is computed from it, what depends on weights
alone is computed once, and where anything else differs nothing is guessed: there is no program.
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

# Sides of other images, of which those are used that are not in proportion to the numbers of images; and how many.
OTHER_SIDES, OTHER_BATCH = (96, 128, 160, 192), 5
# Operations whose result depends on the shape and dtype of what they are given, but on none of its values.
SHAPES_ONLY = {aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty}

Axes = tuple[tuple[int, int], ...]  # the lengths of a tensor's axes in both recordings


@dataclass(frozen=True, slots=True)
class PerImage:
    """A number that is so many times the number of images."""

    times: int


@dataclass(frozen=True, slots=True)
class Call:
    """An operation. A value computed in its arguments is a TracedValue, ModelTensor, SymbolicSize or PerImage."""

    number: int
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """What computes `returned` from images, in any number.

    constants: the content of tensors that no image changes. axes, dtypes: of every tensor that is made.
    any_size: whether images may have another size than those that were recorded.
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
        model: it runs two or three times.
        images: (2, C, H, W).
        sizes: whether images may have other sizes, if the model's code allows it.

    Raises:
        UnrecordedError: the forward does what operations on tensors cannot repeat.
    """
    first = record(model, images)
    again = _of_another_size(model, images, first) if sizes else None
    if again is not None:
        try:
            return _merged(model, first, again, any_size=True)
        except UnrecordedError:
            pass  # its code decides on sizes, or computes with them
    three = images[[0, 1, 0]]
    try:
        return _merged(model, first, record(model, three), any_size=False)
    except UnrecordedError:  # its code may keep what a forward computes for images of a size
        return _merged(model, record(model, images), record(model, three), any_size=False)


def _of_another_size(model: nn.Module, images: Tensor, first: Recording) -> Recording | None:
    """A recording with images of another size; None if the model does not take it, or it would tell nothing."""
    _, chs, height, width = images.shape
    taken = {height, width, height * OTHER_BATCH / len(images), width * OTHER_BATCH / len(images)}
    sides = [side for side in OTHER_SIDES if side not in taken]
    try:
        again = record(model, images.new_zeros(OTHER_BATCH, chs, sides[0], sides[1]))
    except UnrecordedError:
        return None
    return None if _has_single_cells(first, again) else again


def _has_single_cells(first: Recording, again: Recording) -> bool:
    """Whether a side that depends on the images is one cell long somewhere, and so fits to any other side."""
    steps = zip(first.steps, again.steps, strict=False)
    pairs = (pair for one, other in steps for axes in _axes(one, other) for pair in axes)
    return any(1 in pair and pair[0] != pair[1] for pair in pairs)


def _axes(one: Step, other: Step) -> Iterator[Axes]:
    """The axes of each tensor that a step returned."""
    for first, again in zip(one.returned, other.returned, strict=False):
        yield tuple(zip(first.shape, again.shape, strict=False))


def _merged(model: nn.Module, first: Recording, again: Recording, any_size: bool) -> Program:
    """Both recordings as one program; UnrecordedError if they are not of one."""
    operations = [[step.operation for step in recording.steps] for recording in (first, again)]
    same = operations[0] == operations[1] and first.returned == again.returned and first.asked == again.asked
    if not same or not _alike(first.literals, again.literals):
        raise UnrecordedError("other images take other operations")
    batches = len(first.images), len(again.images)
    image_axes = tuple(zip(first.images.shape, again.images.shape, strict=True))
    made = _Maker(
        Program([], {}, {TracedValue(-1): image_axes}, {TracedValue(-1): first.images.dtype}, first.returned, any_size)
    )
    made.program.constants.update((ModelTensor(path), tensor.detach()) for path, tensor in tensors_of(model))
    made.program.constants.update(first.literals)
    for number, (one, other) in enumerate(zip(first.steps, again.steps, strict=True)):
        ours, theirs = (one.args, one.kwargs), (other.args, other.kwargs)
        if not any_size:
            ours, theirs = tree_map(_number, ours), tree_map(_number, theirs)
        made.add(Call(number, one.operation, *_common(ours, theirs, batches)), one, list(_axes(one, other)))
    made.require_current(first.returned)
    return _without_unused(made.program)


def _alike(one: Mapping[Name, Tensor], other: Mapping[Name, Tensor]) -> bool:
    """Whether these are the same tensors."""
    return list(one) == list(other) and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _number(given: Any) -> Any:
    """An argument, or the number that it is where it is the length of an axis."""
    return given.length if isinstance(given, SymbolicSize) else given


def _common(one: Any, other: Any, batches: tuple[int, int]) -> Any:
    """The arguments of a step, with `PerImage` for numbers that grow with the batch; UnrecordedError for others."""
    if isinstance(one, tuple | list) and type(one) is type(other) and len(one) == len(other):
        return type(one)(_common(a, b, batches) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        return {name: _common(value, other[name], batches) for name, value in one.items()}
    if type(one) is type(other) and one == other:
        return one
    if type(one) is int and type(other) is int:
        times, rest = divmod(one, batches[0])
        if rest == 0 and times * batches[1] == other:
            return PerImage(times)
    raise UnrecordedError(f"other images take other arguments: {one} and {other}")


class _Maker:
    """Adds calls to a program, and computes at once those that no image changes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._stale: set[Name] = set()

    def add(self, call: Call, step: Step, axes: list[Axes]) -> None:
        """Add a call, or what it returns. step: its first recording. axes: of the tensors that it returns."""
        several = step.several
        names = [TracedValue(call.number, place if several else None) for place in range(len(step.returned))]
        constant = self._computed(call)
        if constant is None:
            self.require_current(parts_of((call.args, call.kwargs), TracedValue))
            self._stale.update(step.also_changed)
            self.program.calls.append(call)
        else:
            self.program.constants.update(zip(names, constant, strict=True))
        for name, lengths, tensor in zip(names, axes, step.returned, strict=True):
            self.program.axes[name], self.program.dtypes[name] = lengths, tensor.dtype

    def require_current(self, names: Iterable[Name]) -> None:
        """UnrecordedError if one of these tensors was changed through another view of its memory."""
        if not self._stale.isdisjoint(names):
            raise UnrecordedError("a tensor is read after another view of it was written to")

    def _computed(self, call: Call) -> list[Tensor] | None:
        """What a call returns if no image changes it."""
        args, kwargs = call.args, call.kwargs
        if call.operation.overloadpacket in SHAPES_ONLY and isinstance(args[0], TracedValue):
            args = (torch.empty(0, dtype=self.program.dtypes[args[0]]), *args[1:])
        if parts_of((args, kwargs), SymbolicSize | PerImage):
            return None
        if not all(name in self.program.constants for name in parts_of((args, kwargs), TracedValue | ModelTensor)):
            return None
        args, kwargs = tree_map(self._content, (args, kwargs))
        with torch.inference_mode(False), torch.no_grad():
            returned = call.operation(*args, **kwargs)
        return [returned] if isinstance(returned, Tensor) else list(returned)

    def _content(self, given: Any) -> Any:
        return self.program.constants[given] if isinstance(given, TracedValue | ModelTensor) else given


def parts_of(given: Any, kind: Any) -> list[Any]:
    """What there is of a kind in arguments."""
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, kind)]


def _without_unused(program: Program) -> Program:
    """The program without calls whose results nothing reads."""
    needed = {name.step for name in program.returned if isinstance(name, TracedValue)}
    kept: list[Call] = []
    for call in reversed(program.calls):
        if call.number in needed:
            kept.append(call)
            given = (call.args, call.kwargs)
            needed.update(name.step for name in parts_of(given, TracedValue))
            needed.update(side.tensor.step for side in parts_of(given, SymbolicSize))
    program.calls[:] = reversed(kept)
    return program
