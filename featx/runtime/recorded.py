"""From recordings of a forward to a graph: what is alike in two of them is constant, what grows with the batch is
computed from it, and where anything else differs nothing is guessed: there is no graph.
"""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .record import Recording, UnrecordedError, record
from .side import Made, Own, SideOf

aten = torch.ops.aten

# Sides of other images, of which those are used that are not in proportion to the numbers of images; and how many.
OTHER_SIDES, OTHER_BATCH = (96, 128, 160, 192), 5
# What takes any memory format, where kernels may leave another one than was seen.
INSTEAD: dict[Any, Any] = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


@dataclass(frozen=True, slots=True)
class PerImage:
    """A number that is so many times the number of images."""

    times: int


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def recorded(model: nn.Module, images: Tensor, sizes: bool) -> tuple[fx.GraphModule, bool]:
    """The graph of `model(images)` for any number of images, and whether for any size, too.

    images: (2, C, H, W). sizes: whether the model may take other sizes. Raises UnrecordedError if there is none.
    """
    first = record(model, images)
    steps = _for_any_size(model, images, first) if sizes else None
    if steps is not None:
        return _graph(model, first, steps, True), True
    return _graph(model, first, _merged(first, record(model, images[[0, 1, 0]])), False), False


def _for_any_size(model: nn.Module, images: Tensor, first: Recording) -> list[Arguments] | None:
    """The steps; None if something in them depends on the size, or the model does not take another."""
    _, chs, height, width = images.shape
    taken = {height, width, height * OTHER_BATCH / len(images), width * OTHER_BATCH / len(images)}
    sides = [side for side in OTHER_SIDES if side not in taken]
    other = images.new_zeros(OTHER_BATCH, chs, sides[0], sides[1])
    try:
        again = record(model, other)
        return None if _has_single_cells(first, again) else _merged(first, again)
    except UnrecordedError:
        return None


def _has_single_cells(first: Recording, again: Recording) -> bool:
    """Whether a side that depends on the images is one cell long somewhere, and so fits to any other side."""
    returned = (
        zip(one.returned, other.returned, strict=False) for one, other in zip(first.steps, again.steps, strict=False)
    )
    sides = (zip(one.shape, other.shape, strict=False) for pairs in returned for one, other in pairs)
    return any(1 in pair and pair[0] != pair[1] for pairs in sides for pair in pairs)


def _merged(first: Recording, again: Recording) -> list[Arguments]:
    """The arguments of every step, with `PerImage` for numbers that grow with the batch; UnrecordedError for others."""
    batches = len(first.images), len(again.images)
    operations = [[step.operation for step in recording.steps] for recording in (first, again)]
    if operations[0] != operations[1] or first.returned != again.returned or first.asked != again.asked:
        raise UnrecordedError("other images take other operations")
    return [
        _common((one.args, one.kwargs), (other.args, other.kwargs), batches)
        for one, other in zip(first.steps, again.steps, strict=True)
    ]


def _common(one: Any, other: Any, batches: tuple[int, int]) -> Any:
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


def _graph(model: nn.Module, recording: Recording, steps: list[Arguments], any_size: bool) -> fx.GraphModule:
    made = _Nodes(recording, any_size)
    for number, (step, (args, kwargs)) in enumerate(zip(recording.steps, steps, strict=True)):
        made.call(number, step.operation, made.named(args), made.named(kwargs), step.returned)
    made.graph.output(tuple(made.named(name) for name in recording.returned))
    made.graph.eliminate_dead_code()
    return fx.GraphModule(model, made.graph)


class _Nodes:
    """The nodes of a graph by what they are called in a recording. any_size: whether sides may differ from it."""

    def __init__(self, recording: Recording, any_size: bool) -> None:
        self.graph, self._any_size = fx.Graph(), any_size
        self._known: dict[Any, fx.Node] = {Made(-1): self.graph.placeholder("x")}
        self._known[Made(-1)].meta["val"] = recording.images

    def call(self, number: int, operation: Any, args: Any, kwargs: Any, returned: tuple[Tensor, ...]) -> None:
        node = self.graph.call_function(INSTEAD.get(operation, operation), args, kwargs)
        declared = operation._schema.returns
        several = len(declared) > 1 or not isinstance(declared[0].type, torch.TensorType)
        node.meta["val"] = returned if several else returned[0]
        self._known[Made(number)] = node
        for place, tensor in enumerate(returned if several else ()):
            self._known[Made(number, place)] = self.graph.call_function(operator.getitem, (node, place))
            self._known[Made(number, place)].meta["val"] = tensor

    def named(self, given: Any) -> Any:
        """Arguments with nodes in them."""
        if isinstance(given, tuple | list):
            return type(given)(self.named(one) for one in given)
        if isinstance(given, dict):
            return {name: self.named(value) for name, value in given.items()}
        if isinstance(given, SideOf) and not self._any_size:
            return given.length
        if isinstance(given, Made | Own | SideOf | PerImage):
            if given not in self._known:
                self._known[given] = self._new(given)
            return self._known[given]
        return given

    def _new(self, given: Made | Own | SideOf | PerImage) -> fx.Node:
        if isinstance(given, Own):
            return self.graph.get_attr(given.path)
        side: Any = aten.sym_size.int
        if isinstance(given, SideOf):
            return self.graph.call_function(side, (self.named(given.tensor), given.axis))
        assert isinstance(given, PerImage)
        if given.times == 1:
            return self.graph.call_function(side, (self.named(Made(-1)), 0))
        return self.graph.call_function(operator.mul, (self.named(PerImage(1)), given.times))
