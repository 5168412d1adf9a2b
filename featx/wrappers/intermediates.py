"""Maps of some levels beside what `forward_features` returns, from one pass: timm's `forward_intermediates`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..backbone import Backbone, Pyramid
from ..errors import ArgumentError
from ..features import FeatureInfo, Levels, OutIndices
from .chain import Chain

FORMATS = ("NCHW", "NLC")

Pair = tuple[Tensor, Tensor]  # prefix tokens (N, tokens, chs) and map (N, chs, h, w)


class Intermediates:
    """What was asked of a model; see `Backbone.forward_intermediates`."""

    def __init__(
        self, model: Backbone, indices: OutIndices | None, prefix: bool, norm: bool, stop_early: bool, output_fmt: str
    ) -> None:
        if output_fmt not in FORMATS:
            raise ArgumentError(f"output_fmt={output_fmt!r}: choose one of {FORMATS}")
        self.model, self.prefix, self.norm = model, prefix, norm
        self.stop_early, self.output_fmt = stop_early, output_fmt
        self.asked = model.feature_info.select(indices).out_indices

    def maps(self, x: Tensor) -> list[Any]:
        """The maps of images (N, in_chans, H, W), in the order asked for."""
        return self._formed(self._pairs(x, sorted(self.asked)))

    def features_and_maps(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """What `forward_features` returns, or the deepest map if it stops there, and the maps."""
        levels = sorted(self.asked)
        if self.stop_early:
            pairs = self._pairs(x, levels)
            return pairs[-1][1], self._formed(pairs)
        features, pairs = self.model.forward_features_and_maps(x, levels)
        return features, self._formed(pairs)

    def _pairs(self, x: Tensor, levels: Sequence[int]) -> list[Pair]:
        return (self.model if isinstance(self.model, Pyramid) else Chain(self.model)).forward_tokens(x, levels)

    def _formed(self, pairs: Sequence[Pair]) -> list[Any]:
        by_level = dict(zip(sorted(self.asked), pairs, strict=True))
        return [self._form(*by_level[level]) for level in self.asked]

    def _form(self, prefix: Tensor, map_: Tensor) -> Any:
        if self.norm:
            prefix, map_ = self.model.normed_tokens(prefix, map_)
        shaped = map_ if self.output_fmt == "NCHW" else map_.flatten(2).transpose(1, 2)
        return (shaped, prefix) if self.prefix else shaped


def chained(model: Backbone, x: Tensor, levels: Sequence[int]) -> tuple[Tensor, list[Pair]]:
    """The last feature and the maps of `levels`, which ascend, of a model whose children run in order."""
    rows = [model.feature_info[level] for level in levels]
    last = FeatureInfo(model.num_features, model.feature_info[-1].reduction, model._last_feature)
    ends_with_level = rows[-1].name == last.name
    chain = Chain(model, Levels(rows if ends_with_level else [*rows, last]))
    pairs = chain.forward_tokens(x, range(len(chain.feature_info)))
    return pairs[-1][1], pairs[: len(rows)]
