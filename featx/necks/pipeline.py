"""Pipeline: an extractor followed by necks, with the interface of an extractor."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ..backbone import Backbone, Pyramid
from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..tracing.execution_order import meta_images, run_on_meta
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .base import Neck


class Pipeline(FeatureExtractWrapper):
    """An extractor followed by necks. It returns the maps of the last neck.

    It has the interface of `extractor` (`in_chans`, `data_config`, `size_divisor`, `featx.verify`). State dict keys are
    `backbone.` plus the key in the model, and `necks.<i>.` plus the key in the neck.

    Args:
        extractor: the feature extractor.
        necks: run in this order.

    Raises:
        ContractError: `extractor` is not a feature extractor, or a neck was built for other maps than it would receive.
    """

    backbone: FeatureExtractWrapper

    def __init__(self, extractor: FeatureExtractWrapper, *necks: Neck) -> None:
        super().__init__(BackboneAndNecks(extractor, necks))

    @property
    def size_divisor(self) -> int:
        """Pixels that the sides of images must be multiples of; 1 for any size."""
        return self.backbone.size_divisor


class BackboneAndNecks(Pyramid):
    """The pyramid of a Pipeline: `necks` run one after another on the maps of `backbone`."""

    def __init__(self, backbone: FeatureExtractWrapper, necks: Sequence[Neck]) -> None:
        super().__init__()
        _require_fit(backbone, necks)
        self.backbone, self.necks = backbone, nn.ModuleList(necks)
        last = f"necks.{len(necks) - 1}" if necks else "backbone"
        levels = necks[-1].feature_info if necks else backbone.feature_info
        self.feature_info = Levels(FeatureInfo(level.chs, level.reduction, f"{last}.{level.name}") for level in levels)
        if backbone.in_chans is not None:
            self.in_chans = backbone.in_chans
        if backbone.data_config is not None:
            self.data_config = backbone.data_config
        self.load_report, self.size_rule = backbone.load_report, self._cells
        self.fixed_size, self.corrections = backbone.fixed_size, backbone.corrections
        self.smallest = backbone._smallest  # necks compute their coarser maps for small images, too

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        returned = self.backbone(x)
        takes_tokens = any(cast(Neck, neck).takes_tokens for neck in self.necks)
        maps = returned if takes_tokens else maps_in(returned)
        for neck in self.necks:
            maps = neck(maps)
        return [maps[level] for level in levels]

    def _cells(self, side: int, reduction: int) -> int:
        """Cells along a side of `side` pixels of the map with that reduction, by the rules of backbone and necks."""
        cells = cells_along(self.backbone, side)
        for neck in self.necks:
            assert isinstance(neck, Neck)
            cells = neck.cells(cells)
        return cells[self.feature_info.reduction().index(reduction)]


def cells_along(extractor: FeatureExtractWrapper, side: int) -> list[int]:
    """Cells of each map along a side of `side` pixels; measured on the meta device if the model has no size rule."""
    source = extractor.source
    if isinstance(source, Backbone):
        return [source.size_rule(side, reduction) for reduction in extractor.feature_info.reduction()]
    return [map_.shape[-1] for map_ in maps_in(run_on_meta(extractor, meta_images(extractor, (side, side))))]


def _require_fit(extractor: object, necks: Sequence[Neck]) -> None:
    if not isinstance(extractor, FeatureExtractWrapper):
        raise ContractError(
            f"a pipeline starts with an extractor, got {type(extractor).__name__}: create_model(..., "
            "features_only=True), or FeatureExtractWrapper(model, out_indices)"
        )
    levels = extractor.feature_info
    for position, neck in enumerate(necks):
        if not isinstance(neck, Neck):
            raise ContractError(f"neck {position} is {type(neck).__name__}, no featx.necks.Neck")
        produced, expected = ([(level.chs, level.reduction) for level in rows] for rows in (levels, neck.takes))
        if produced != expected:
            raise ContractError(
                f"{type(neck).__name__} (neck {position}) was built for\n{neck.takes}\nbut would get\n{levels}\n"
                "Build each neck from the feature_info of what comes before it"
            )
        if neck.takes_tokens and (position or extractor._output != "tokens"):
            raise ContractError(
                f"{type(neck).__name__} (neck {position}) takes prefix tokens and maps: put it first, after an "
                'extractor with output="tokens"'
            )
        levels = neck.feature_info
