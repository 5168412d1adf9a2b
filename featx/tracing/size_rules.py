"""Size rules inferred from runs on the meta device: cells of a map per side of the image, and accepted image sizes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd, lcm

Size = tuple[int, int]
Accepts = Callable[[Size], bool]

MOST_RUNS = 16


@dataclass(frozen=True, slots=True)
class Rounding:
    """The rounding of side / reduction to a number of cells.

    A chain of strided convolutions equals one floor division of side + offset. An offset of 0 rounds down, one of
    reduction - 1 rounds up, and a negative one is due to convolutions without padding. The number of cells is a
    multiple of `multiple`, which is 2 for MobileViTv2.
    """

    reduction: int
    offset: int
    multiple: int = 1

    def cells(self, side: int) -> int:
        return self.multiple * ((side + self.offset) // (self.multiple * self.reduction))

    def __str__(self) -> str:
        names = {0: "rounded down", self.multiple * self.reduction - 1: "rounded up"}
        name = names.get(self.offset, f"(side {self.offset:+d}) // {self.reduction}")
        return name + (f" to a multiple of {self.multiple}" if self.multiple > 1 else "")


class SizeRule:
    """A function of a side in pixels and a reduction that returns the cells of a map along that side.

    Args:
        measure: returns the rounding of each reduction, and is called on first use. Other reductions round up.
    """

    def __init__(self, measure: Callable[[], dict[int, Rounding]]) -> None:
        self._measure = measure
        self._roundings: dict[int, Rounding] | None = None

    def __call__(self, side: int, reduction: int) -> int:
        return self.roundings().get(reduction, Rounding(reduction, reduction - 1)).cells(side)

    def roundings(self) -> dict[int, Rounding]:
        """The roundings by reduction."""
        if self._roundings is None:
            self._roundings = self._measure()
        return self._roundings


def roundings(
    shapes: Callable[[Size], Sequence[Sequence[int]]], reductions: Sequence[int], own_size: Size, fixed: bool
) -> dict[int, Rounding]:
    """The rounding of each reduction. A reduction whose maps no rounding describes is left out.

    Args:
        shapes: returns the shapes (N, chs, h, w) of the maps for an image size, in the order of `reductions`; none if
            the model refuses the size.
        reductions: input pixels per cell of each map.
        own_size: (height, width) that the model accepts.
        fixed: measure at this size only, and return the most common rounding that holds for it.
    """
    candidates = {reduction: _candidates(reduction) for reduction in {*reductions}}
    base = lcm(*candidates) * -(-max(own_size) // lcm(*candidates))
    sides = list(range(base, base + 2 * max(reductions)))
    size = own_size
    for _ in range(1 if fixed else MOST_RUNS):
        maps = shapes(size)
        for reduction, shape in zip(reductions, maps, strict=False):
            for side, cells in zip(size, shape[2:], strict=True):
                candidates[reduction] = [rule for rule in candidates[reduction] if rule.cells(side) == cells]
        sides = sides if maps else [side for side in sides if side not in size]
        size = _most_informative(candidates.values(), sides)
        if size[0] == size[1]:
            break
    return {reduction: rules[0] for reduction, rules in candidates.items() if rules}


def _candidates(reduction: int) -> list[Rounding]:
    """All roundings that are considered, the most common first."""
    offsets = (reduction - 1, 0, *range(1, reduction - 1), *range(-1, -4 * reduction, -1))
    return [Rounding(reduction, offset) for offset in offsets] + [Rounding(reduction, 2 * reduction - 1, 2)]


def _most_informative(candidates: Iterable[Sequence[Rounding]], sides: Sequence[int]) -> Size:
    """The two sides whose measurement excludes the most candidates; (0, 0) if none excludes any."""
    ambiguous = [rules for rules in candidates if len(rules) > 1]
    excluded: dict[int, int] = defaultdict(int)
    for side in sides:
        for rules in ambiguous:
            cells = [rule.cells(side) for rule in rules]
            excluded[side] += min(cells.count(value) for value in {*cells}) if len({*cells}) > 1 else 0
    ranked = sorted(sides, key=lambda side: -excluded[side])
    return (ranked[0], ranked[1]) if len(ranked) > 1 and excluded[ranked[0]] else (0, 0)


def divisor_of(accepts: Accepts, own_size: Size) -> int:
    """The number of pixels that both sides of an image must be multiples of; 1 if the model accepts any size.

    The smallest divisor of both sides of `own_size` that is confirmed by another size.
    """
    common = gcd(*own_size)
    steps = (step for step in range(1, common + 1) if common % step == 0)
    return next((step for step in steps if accepts((own_size[0] + step, own_size[1] + 2 * step))), common)


def nearest(size: Size, divisor: int) -> Size:
    """The (height, width) closest to `size` whose sides are multiples of `divisor`."""
    height, width = (max(divisor, round(side / divisor) * divisor) for side in size)
    return height, width


def acceptable(size: Size, divisor: int, accepts: Accepts, own_size: Size) -> Size:
    """A size that the model accepts instead of `size`: the closest multiple of the divisor, or else `own_size`."""
    closest = nearest(size, divisor)
    return closest if closest != size and accepts(closest) else own_size
