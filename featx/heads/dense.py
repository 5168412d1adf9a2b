"""What the heads of segmentation share: they classify every cell of the last of the maps they are given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from ..errors import ArgumentError, InputError
from ..features import Levels


class DenseHead(nn.Module, ABC):
    """Maps of these levels to logits (N, num_classes, h, w) at the size of the map it takes, by default the last one.

    Raises ArgumentError for fewer than 1 class or if there is no such level, and, when called, InputError for maps that
    are not those of the levels.
    """

    def __init__(self, feature_info: Levels, num_classes: int, position: int = -1) -> None:
        super().__init__()
        require_classes(num_classes, fewest=1)
        if not -len(feature_info) <= position < len(feature_info):
            raise ArgumentError(
                f"{type(self).__name__} takes map {position} of its source, which gives {len(feature_info)}; ask for "
                f"more levels with out_indices:\n{feature_info}"
            )
        self.feature_info, self.num_classes = feature_info, num_classes
        self.position, self.in_chs = position, feature_info[position].chs

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        require_maps(maps, self.feature_info, type(self).__name__)
        return self.classify(maps[self.position])

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """(N, in_chs, h, w) to logits (N, num_classes, h, w)."""


class SegmentationConfig(Protocol):
    """The configuration of a head, which builds it."""

    def build(self, feature_info: Levels, num_classes: int) -> DenseHead:
        """The head, with random weights."""
        ...


def dropout(rate: float) -> nn.Module:
    """A layer that drops whole maps in training at this rate; ArgumentError unless it is in [0, 1)."""
    if not 0 <= rate < 1:
        raise ArgumentError(f"dropout={rate!r}: expected a rate from 0 to below 1")
    return nn.Dropout2d(rate)


def require_classes(num_classes: int, fewest: int) -> None:
    """Raise ArgumentError for a number of classes that no head can have."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < fewest:
        raise ArgumentError(f"num_classes={num_classes!r}: expected an int of at least {fewest}")


def require_maps(maps: Sequence[Tensor], levels: Levels, owner: str) -> None:
    """Raise InputError unless there is one map per level with the channels of the level."""
    wanted, given = levels.channels(), [tuple(map_.shape) for map_ in maps]
    if len(given) != len(wanted) or any(
        len(shape) != 4 or shape[1] != chs for shape, chs in zip(given, wanted, strict=False)
    ):
        raise InputError(f"{owner} expects maps (N, chs, h, w) with chs {wanted}, got shapes {given}")
