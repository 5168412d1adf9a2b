"""The shape that a module returns as a function of the shape it is given, inferred from a few calls."""

from collections.abc import Sequence
from dataclasses import dataclass

# Cells that convolutions without padding may take away.
MOST_LOST = 8

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a tensor: (times * given[axis] + plus) // divided_by; `plus` itself if it depends on none."""

    axis: int | None
    times: int = 1
    plus: int = 0
    divided_by: int = 1

    def of(self, given: Sequence[int]) -> int:
        return self.plus if self.axis is None else (self.times * given[self.axis] + self.plus) // self.divided_by


def sides(given: Sequence[Shape], returned: Sequence[Shape]) -> tuple[Side, ...] | None:
    """How shapes of one rank `returned` follow from those `given` in the same calls; None if that is not seen."""
    if len({len(shape) for shape in returned}) != 1 or len({len(shape) for shape in given}) != 1:
        return None
    found = [_side(given, [shape[axis] for shape in returned], axis) for axis in range(len(returned[0]))]
    return None if None in found else tuple(side for side in found if side is not None)


def _side(given: Sequence[Shape], lengths: Sequence[int], axis: int) -> Side | None:
    """The axis of the same number first: what does not change along it is the batch or the channels."""
    others = sorted(range(len(given[0])), key=lambda other: other != axis)
    if axis < len(given[0]) and [shape[axis] for shape in given] == list(lengths):
        return Side(axis)
    if len(set(lengths)) == 1:
        return Side(None, plus=lengths[0])
    return next(
        (side for other in others if (side := _linear([shape[other] for shape in given], lengths, other))), None
    )


def _linear(given: Sequence[int], lengths: Sequence[int], axis: int) -> Side | None:
    if all(number and length % number == 0 for number, length in zip(given, lengths, strict=True)):
        times = {length // number for number, length in zip(given, lengths, strict=True)}
        if len(times) == 1:
            return Side(axis, times.pop())
    span, count = max(given) - min(given), max(lengths) - min(lengths)
    divided_by = round(span / count)
    if not divided_by:
        return None
    least = max(length * divided_by - number for number, length in zip(given, lengths, strict=True))
    most = min(length * divided_by - number for number, length in zip(given, lengths, strict=True)) + divided_by - 1
    # rounding up is what padded convolutions do, rounding down what patches do
    plus = next((plus for plus in (divided_by - 1, 0, most) if least <= plus <= most), None)
    if plus is None or plus < -MOST_LOST * divided_by:
        return None
    return Side(axis, 1, plus, divided_by)
