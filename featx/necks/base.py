"""The base class of necks, and checks of the levels that necks are built for."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, InputError
from ..features import FeatureInfo, Levels, as_levels
from ..wrappers.extractor import memory_format_of


class Neck(nn.Module, ABC):
    """Base class of necks: modules from the maps of some levels to the maps of other levels.

    Args:
        takes: the levels of the input maps: Levels, or dictionaries with `chs`, `reduction` and `name`.

    Attributes:
        takes: the levels of the input maps.
        feature_info: the levels of the output maps. A name is the path of the module of this neck that returns the map.
        takes_tokens: whether it takes pairs of prefix tokens and map, from an extractor with `output="tokens"`.
    """

    feature_info: Levels
    takes_tokens: bool = False

    def __init__(self, takes: object) -> None:
        super().__init__()
        self.takes = levels_of(takes, type(self).__name__)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, chs, h, w), one per level of `takes`, to one map per level of `feature_info`.

        The output is contiguous in the memory format of the first map. InputError for maps that do not match `takes`.
        """
        self._check(maps)
        layout = memory_format_of(maps[0])
        return [map_.contiguous(memory_format=layout) for map_ in self.merge(list(maps))]

    @abstractmethod
    def merge(self, maps: list[Tensor]) -> list[Tensor]:
        """Compute the maps of `feature_info` from checked maps of `takes`."""

    def cells(self, cells: Sequence[int]) -> list[int]:
        """Cells along a side of each output map, from the cells along that side of each input map."""
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


def levels_from(rows: Iterable[tuple[int, int, str]]) -> Levels:
    """Levels from (chs, reduction, module path) of each. ArgumentError unless channels are positive."""
    levels = Levels(FeatureInfo(*row) for row in rows)
    if wrong := [chs for chs in levels.channels() if not isinstance(chs, int) or chs < 1]:
        raise ArgumentError(f"a neck cannot return maps of {wrong[0]!r} channels: expected a positive int")
    return levels


def levels_of(rows: object, owner: str) -> Levels:
    """Levels of `rows` only, without the other levels of their full model. ContractError if rows are invalid."""
    if isinstance(rows, nn.Module):
        raise ArgumentError(f"{owner} is built from the feature_info of {type(rows).__name__}: pass that")
    get_dicts = getattr(rows, "get_dicts", None)  # of timm's class, whose `info` lists all levels of the full model
    if get_dicts is not None and not isinstance(rows, Levels):
        rows = get_dicts()
    return Levels(as_levels(rows, f"the maps that {owner} takes"))


def pyramid_of(rows: object, owner: str) -> Levels:
    """Levels of `rows`. ContractError, with out_indices to choose, unless each reduction is twice the previous one."""
    levels = levels_of(rows, owner)
    reductions = levels.reduction()
    if any(deeper != 2 * shallower for shallower, deeper in pairwise(reductions)):
        raise ContractError(
            f"{owner} takes maps whose reduction doubles from one to the next, got {reductions}:\n{levels}\n"
            f"{_choice(rows if isinstance(rows, Levels) else levels)}"
        )
    return levels


def _choice(levels: Levels) -> str:
    """Advice on which out_indices to choose instead."""
    deepest = {row["reduction"]: row["index"] for row in levels.info}
    if len(deepest) == 1:
        return "All levels have one stride: take the last map, out_indices=[-1], and make SimpleFeaturePyramid of it"
    chains = [[r for k in range(len(deepest)) if (r := start << k) in deepest] for start in deepest]
    longest = max((c for c in chains if [c[0] << k for k in range(len(c))] == c), key=len)
    if len(longest) == 1:
        return f"No two of all its levels do: they have reductions of {sorted(deepest)} pixels"
    return f"Choose one level per reduction, shallow to deep: out_indices={[deepest[r] for r in longest]}"


def resize(x: Tensor, target: Tensor) -> Tensor:
    """Nearest-neighbor resize of (N, C, h, w) to the height and width of `target`."""
    return F.interpolate(x, size=target.shape[-2:], mode="nearest")


def init_xavier(conv: nn.Conv2d) -> None:
    """Initialize in place: Xavier uniform weights, zero bias."""
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def sequential(**layers: nn.Module) -> nn.Sequential:
    """A sequence of layers with these names."""
    return nn.Sequential(OrderedDict(layers))


def extend_by_halving(cells: Sequence[int], count: int) -> list[int]:
    """Extend `cells` to `count` entries, each half of the previous one, rounded up."""
    cells = list(cells)
    while len(cells) < count:
        cells.append(-(-cells[-1] // 2))
    return cells
