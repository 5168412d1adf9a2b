"""Backbones for detectron2 (https://github.com/facebookresearch/detectron2).

Its models normalise images themselves, of pixels from 0 to 255: give them what `pixel_statistics` says and
`input_format="RGB"`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from .source import maps_of, require_names, require_package, require_source, side_multiple, statistics

INSTALL = "see https://detectron2.readthedocs.io/tutorials/install.html"


def backbone(source: nn.Module, names: Sequence[str] | None = None) -> Any:
    """A `detectron2.modeling.Backbone`, which its FPN and meta-architectures accept.

    names: of the maps, which `in_features` of necks and heads then choose from, such as ("res2", "res3", "res4",
        "res5"); by default those of the levels. Raises ArgumentError unless each level has one, and
        MissingPackageError.

    `size_divisibility` is the deepest stride, or twice that in families that enlarge maps: sides that are multiples of
    it make each map exactly twice as large as the next, as the FPN there needs, which doubles sides and fails on odd
    ones.
    """
    source = require_source(source)
    return _class()(source, require_names(names or source.feature_info.names(), source))


def pixel_statistics(source: nn.Module) -> dict[str, list[float]]:
    """`pixel_mean` and `pixel_std` of RGB images from 0 to 255; ArgumentError if the source does not state them."""
    data = statistics(require_source(source))
    return {"pixel_mean": [255 * mean for mean in data.mean], "pixel_std": [255 * std for std in data.std]}


@cache
def _class() -> type[nn.Module]:
    """The subclass of the package's Backbone, which its FPN asks for."""
    base: Any = require_package("detectron2.modeling", INSTALL).Backbone
    shape: Any = require_package("detectron2.layers", INSTALL).ShapeSpec

    class FeatxBackbone(base):
        """Images (N, C, H, W) to a map per name."""

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

    FeatxBackbone.__qualname__ = "FeatxBackbone"  # where pickle finds it: see __getattr__
    return FeatxBackbone


def __getattr__(name: str) -> Any:
    if name == "FeatxBackbone":
        return _class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
