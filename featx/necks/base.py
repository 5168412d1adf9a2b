"""Neck: maps in, maps out; and what necks ask of the levels they are built for."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..features import FeatureInfo, Levels, as_levels
from ..wrappers.extractor import layout_of


class Neck(nn.Module, ABC):
    """Turns the maps of some levels into maps of others.

    takes: the levels it was built for, one per map it takes; dictionaries with `chs`, `reduction` and `name` will do.
    feature_info: the levels of the maps it returns; a name is the path of the module in this neck whose output it is.
    """

    feature_info: Levels

    def __init__(self, takes: object) -> None:
        super().__init__()
        self.takes = levels_of(takes, type(self).__name__)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, chs, h, w), one per level of `takes`, to one per level of `feature_info`.

        They are contiguous in the memory format of the first map. InputError for other maps.
        """
        self._check(maps)
        layout = layout_of(maps[0])
        return [map_.contiguous(memory_format=layout) for map_ in self.merge(list(maps))]

    @abstractmethod
    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """The maps of `feature_info` from those of `takes`, which have been checked."""

    def cells(self, cells: Sequence[int]) -> list[int]:
        """Cells along a side of each map it returns, from those along the same side of each map it takes."""
        return list(cells)

    def _check(self, maps: Sequence[Tensor]) -> None:
        owner, expected = type(self).__name__, self.takes.channels()
        if isinstance(maps, Tensor) or not isinstance(maps, Sequence):
            raise InputError(f"{owner} takes a list of maps, got {type(maps).__name__}: wrap a single map in a list")
        if len(maps) != len(expected) or any(
            m.ndim != 4 or m.shape[1] != c for m, c in zip(maps, expected, strict=True)
        ):
            shapes = [tuple(map_.shape) for map_ in maps]
            raise InputError(
                f"{owner} takes {len(expected)} maps (N, chs, h, w) of {expected} channels, got shapes {shapes}: build "
                "it from the feature_info of what returned these"
            )


def described(rows: Iterable[tuple[int, int, str]]) -> Levels:
    """The levels a neck returns, from channels, reduction and module path of each; ArgumentError for no channels."""
    levels = Levels(FeatureInfo(*row) for row in rows)
    if wrong := [chs for chs in levels.channels() if not isinstance(chs, int) or chs < 1]:
        raise ArgumentError(f"a neck cannot return maps of {wrong[0]!r} channels: expected a positive int")
    return levels


def levels_of(rows: object, owner: str) -> Levels:
    """The levels in `rows`, without those of the full model they were chosen from; ContractError if they are none."""
    if isinstance(rows, nn.Module):
        raise ArgumentError(f"{owner} is built from the feature_info of {type(rows).__name__}: pass that")
    chosen = getattr(rows, "get_dicts", None)  # timm's class has it; its `info` would be all levels of the full model
    if chosen is not None and not isinstance(rows, Levels):
        rows = chosen()
    return Levels(as_levels(rows, f"the maps that {owner} takes"))


def pyramid_of(rows: object, owner: str) -> Levels:
    """The levels in `rows`, each of twice the reduction of the one before; ContractError with a choice if not so."""
    levels = levels_of(rows, owner)
    reductions = levels.reduction()
    if any(deeper != 2 * shallower for shallower, deeper in pairwise(reductions)):
        raise ContractError(
            f"{owner} takes maps whose reduction doubles from one to the next, got {reductions}:\n{levels}\n"
            f"{_choice(rows if isinstance(rows, Levels) else levels)}"
        )
    return levels


def _choice(levels: Levels) -> str:
    """What to ask the extractor for instead."""
    deepest = {row["reduction"]: row["index"] for row in levels.info}
    if len(deepest) == 1:
        return "All levels have one stride: take the last map, out_indices=[-1], and make SimpleFeaturePyramid of it"
    chains = [[r for k in range(len(deepest)) if (r := start << k) in deepest] for start in deepest]
    chosen = max((c for c in chains if [c[0] << k for k in range(len(c))] == c), key=len)
    if len(chosen) == 1:
        return f"No two of all its levels do: they have reductions of {sorted(deepest)} pixels"
    return f"Choose one level per reduction, shallow to deep: out_indices={[deepest[r] for r in chosen]}"


def resize(x: Tensor, like: Tensor) -> Tensor:
    """(N, C, h, w) to the height and width of `like`, by the nearest cell."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def start_uniform(conv: nn.Conv2d) -> None:
    """Xavier's uniform values, in place, and no bias."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def named(**layers: nn.Module) -> nn.Sequential:
    """The layers one after another, under these names."""
    return nn.Sequential(OrderedDict(layers))


def halved(cells: Sequence[int], count: int) -> list[int]:
    """`cells` and further ones up to `count`, each half of the one before, rounded up."""
    cells = list(cells)
    while len(cells) < count:
        cells.append(-(-cells[-1] // 2))
    return cells
