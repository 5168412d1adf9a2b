"""Backbones for detectron2 (https://github.com/facebookresearch/detectron2).

Its models normalize images themselves, from pixel values in 0 to 255: configure them with `pixel_statistics` and
`input_format="RGB"`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from .requirements import maps_of, require_names, require_package, require_source, side_multiple, statistics

INSTALL = "see https://detectron2.readthedocs.io/tutorials/install.html"


def backbone(source: nn.Module, names: Sequence[str] | None = None) -> Any:
    """Convert an extractor to a `detectron2.modeling.Backbone` for detectron2's FPN and meta-architectures.

    `size_divisibility` is the deepest stride, or twice that in families that enlarge maps: for sides that are multiples
    of it, each map is exactly twice as large as the next, which detectron2's FPN requires.

    Args:
        source: a feature extractor.
        names: of the maps, for `in_features` of necks and heads, such as ("res2", "res3", "res4", "res5"). None for the
            names of the levels.

    Raises:
        ArgumentError: a level has no name of its own.
        MissingPackageError: detectron2 is not installed.
    """
    source = require_source(source)
    return _class()(source, require_names(names or source.feature_info.names(), source))


def pixel_statistics(source: nn.Module) -> dict[str, list[float]]:
    """`pixel_mean` and `pixel_std` for RGB values from 0 to 255. ArgumentError if the source has none."""
    data = statistics(require_source(source))
    return {"pixel_mean": [255 * mean for mean in data.mean], "pixel_std": [255 * std for std in data.std]}


@cache
def _class() -> type[nn.Module]:
    """A subclass of detectron2's Backbone, which its FPN requires."""
    base: Any = require_package("detectron2.modeling", INSTALL).Backbone
    shape: Any = require_package("detectron2.layers", INSTALL).ShapeSpec

    class FeatxBackbone(base):
        """Images (N, C, H, W) to a dictionary of maps by name."""

        def __init__(self, source: nn.Module, names: Sequence[str]) -> None:
            super().__init__()
            self.body, self.names = source, tuple(names)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return dict(zip(self.names, maps_of(self.body, x), strict=True))

        def output_shape(self) -> Mapping[str, Any]:
            levels = require_source(self.body).feature_info
            shapes = (shape(channels=level.chs, stride=level.reduction) for level in levels)
            return dict(zip(self.names, shapes, strict=True))

        @property
        def size_divisibility(self) -> int:
            source = require_source(self.body)
            return side_multiple(source, max(source.feature_info.reduction()))

        @property
        def padding_constraints(self) -> dict[str, int]:
            return {"size_divisibility": self.size_divisibility, "square_size": 0}

    FeatxBackbone.__qualname__ = "FeatxBackbone"  # pickle finds it through __getattr__
    return FeatxBackbone


def __getattr__(name: str) -> Any:
    if name == "FeatxBackbone":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
