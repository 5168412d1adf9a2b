"""Pipeline: an extractor and the necks after it, as one source of maps."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..backbone import Backbone, Pyramid
from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..tracing.execution_order import meta_images, run_on_meta
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .base import Neck


class Pipeline(FeatureExtractWrapper):
    """Images in, the last neck's maps out: an extractor whose levels are those of its last neck.

    It answers to all that `extractor` does (`in_chans`, `data_config`, `size_divisor`, `featx.verify`). Its parameters
    are `backbone.` and the name in the plain model, and `necks.<i>.` and the name in the neck.

    Raises ContractError if `extractor` is none, or a neck was built for other maps than it would get.
    """

    backbone: FeatureExtractWrapper

    def __init__(self, extractor: FeatureExtractWrapper, *necks: Neck) -> None:
        super().__init__(BackboneAndNecks(extractor, necks))

    @property
    def size_divisor(self) -> int:
        """The sides of an image must be multiples of it; 1 takes any size."""
        return self.backbone.size_divisor


class BackboneAndNecks(Pyramid):
    """The maps of the last of `necks`, which run one after another on those of `backbone`."""

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
        self.smallest = backbone._smallest  # a neck's coarser maps exist for small images too

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        maps = maps_in(self.backbone(x))
        for neck in self.necks:
            maps = neck(maps)
        return [maps[level] for level in levels]

    def _cells(self, side: int, reduction: int) -> int:
        """Cells of the map of that reduction along a side of so many pixels, by the rules of all that are passed."""
        cells = cells_along(self.backbone, side)
        for neck in self.necks:
            assert isinstance(neck, Neck)
            cells = neck.cells(cells)
        return cells[self.feature_info.reduction().index(reduction)]


def cells_along(extractor: FeatureExtractWrapper, side: int) -> list[int]:
    """Cells of each map along a side of so many pixels; measured where the model has no rule."""
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
        given, taken = ([(level.chs, level.reduction) for level in rows] for rows in (levels, neck.takes))
        if given != taken:
            raise ContractError(
                f"{type(neck).__name__} (neck {position}) was built for\n{neck.takes}\nbut would get\n{levels}\n"
                "Build each neck from the feature_info of what comes before it"
            )
        levels = neck.feature_info
