"""A linear probe: what a map knows of the classes without another layer."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..features import Levels
from .dense import DenseHead


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """A linear probe has nothing to configure."""

    def build(self, feature_info: Levels, num_classes: int) -> "LinearProbe":
        """The head, with random weights."""
        return LinearProbe(feature_info, num_classes)


class LinearProbe(DenseHead):
    """Maps to logits (N, num_classes, h, w): each cell of the last map by itself. Raises what DenseHead does."""

    def __init__(self, feature_info: Levels, num_classes: int) -> None:
        super().__init__(feature_info, num_classes)
        self.classifier = nn.Conv2d(self.in_chs, num_classes, 1)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)
