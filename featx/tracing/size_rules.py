"""Rules of sizes, found by running shapes: the cells of a map along a side, and the images that a model takes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd, lcm

Size = tuple[int, int]
Takes = Callable[[Size], bool]

RUNS = 16


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the cells along a side of some reduction follow from its pixels.

    Strided convolutions one after another amount to one division: an offset of 0 rounds down, one of reduction - 1 up,
    a negative one is a convolution without padding. multiple: cells come in groups of so many (MobileViTv2).
    """

    reduction: int
    offset: int
    multiple: int = 1

    def cells(self, side: int) -> int:
        return self.multiple * ((side + self.offset) // (self.multiple * self.reduction))

    def __str__(self) -> str:
        words = {0: "rounded down", self.multiple * self.reduction - 1: "rounded up"}
        how = words.get(self.offset, f"(side {self.offset:+d}) // {self.reduction}")
        return how + (f" to a multiple of {self.multiple}" if self.multiple > 1 else "")


class SizeRule:
    """Cells of a map along a side of so many pixels, from its reduction, by the roundings that are found on first use.

    find: gives the rounding of each reduction; one that has none rounds up.
    """

    def __init__(self, find: Callable[[], dict[int, Rounding]]) -> None:
        self._find = find
        self._found: dict[int, Rounding] | None = None

    def __call__(self, side: int, reduction: int) -> int:
        return self.roundings().get(reduction, Rounding(reduction, reduction - 1)).cells(side)

    def roundings(self) -> dict[int, Rounding]:
        """By reduction."""
        if self._found is None:
            self._found = self._find()
        return self._found


def roundings(
    shapes: Callable[[Size], Sequence[Sequence[int]]], reductions: Sequence[int], own: Size, once: bool
) -> dict[int, Rounding]:
    """The rounding of each of the `reductions`; none of one that no such rule describes.

    shapes: of the maps (N, chs, h, w) for images of a size, in the order of `reductions`; none if it is refused.
    once: ask for its own size alone, because there is no other, and give the simplest rule that holds there.
    """
    possible = {reduction: _possible(reduction) for reduction in {*reductions}}
    base = lcm(*possible) * -(-max(own) // lcm(*possible))
    sides = list(range(base, base + 2 * max(reductions)))
    size = own
    for _ in range(1 if once else RUNS):
        seen = shapes(size)
        for level, shape in enumerate(seen):
            reduction = reductions[level]
            for side, cells in zip(size, shape[2:], strict=True):
                possible[reduction] = [rule for rule in possible[reduction] if rule.cells(side) == cells]
        sides = sides if seen else [side for side in sides if side not in size]
        size = _most_telling(possible.values(), sides)
        if size[0] == size[1]:
            break
    return {reduction: rules[0] for reduction, rules in possible.items() if rules}


def _possible(reduction: int) -> list[Rounding]:
    """Every rounding there may be, the most usual first."""
    usual = (reduction - 1, 0, *range(1, reduction - 1), *range(-1, -4 * reduction, -1))
    return [Rounding(reduction, offset) for offset in usual] + [Rounding(reduction, 2 * reduction - 1, 2)]


def _most_telling(possible: Iterable[Sequence[Rounding]], sides: Sequence[int]) -> Size:
    """The two sides at which the rules left differ most; twice the same if they nowhere differ."""
    left = [rules for rules in possible if len(rules) > 1]
    answers: dict[int, int] = defaultdict(int)
    for side in sides:
        for rules in left:
            cells = [rule.cells(side) for rule in rules]
            answers[side] += min(cells.count(value) for value in {*cells}) if len({*cells}) > 1 else 0
    ranked = sorted(sides, key=lambda side: -answers[side])
    return (ranked[0], ranked[1]) if len(ranked) > 1 and answers[ranked[0]] else (0, 0)


def divisor_of(takes: Takes, own: Size) -> int:
    """The number of pixels that both sides of an image must be multiples of; 1 if any size is taken.

    It is looked for among the divisors of the model's `own` sides, the smallest first.
    """
    common = gcd(*own)
    steps = (step for step in range(1, common + 1) if common % step == 0)
    return next((step for step in steps if takes((own[0] + step, own[1] + 2 * step))), common)


def nearest(size: Size, divisor: int) -> Size:
    """The (height, width) closest to `size` whose sides are multiples of `divisor`."""
    height, width = (max(divisor, round(side / divisor) * divisor) for side in size)
    return height, width


def acceptable(size: Size, divisor: int, takes: Takes, own: Size) -> Size:
    """A size that the model takes, for images of a `size` that it does not: the closest one, or its `own`."""
    closest = nearest(size, divisor)
    return closest if closest != size and takes(closest) else own
