"""Sizes of images that a model takes, found by running shapes."""

from collections.abc import Callable
from math import gcd

Size = tuple[int, int]
Takes = Callable[[Size], bool]


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
