"""Build models of other packages, with their weights and levels, through the packages' bridges."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn

from .arguments import require_annotated
from .backbone import Pyramid
from .errors import ArgumentError
from .weights.checkpoint import LoadOptions
from .weights.download import config_of, is_address
from .weights.hub_format import levels_in
from .weights.load import move_model
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import source_of
from .wrappers.transparent import innermost


def bridged_model(
    package: ModuleType, name: str, given: Mapping[str, Any], levels: Mapping[str, Any] | None, options: LoadOptions
) -> nn.Module:
    """A model of another package. Its name may be an address of a `config.json` that describes it."""
    norm_maps = _norm_choice(given, levels)
    given = {name: value for name, value in given.items() if name != "norm_maps"}
    arguments = {"in_chans": None, "num_classes": None, "output_stride": None, **given}
    weights, saved = options.checkpoint_path, None
    if is_address(name):
        config = config_of(name, options.cache_dir)
        model: nn.Module = package.restore(config, name, **arguments)
        weights, saved = name if options.pretrained else weights, levels_in(config)
    else:
        model = package.build(name, pretrained=options.pretrained, cache_dir=options.cache_dir, **arguments)
    target = model if levels is None else chosen_extractor(_with_norm(package.pyramid(model), norm_maps), levels, saved)
    move_model(target, options.device, options.dtype)
    if weights is not None:
        innermost(source_of(target)).load_report = package.load(target, weights, options, given, model)
    return target


def _norm_choice(given: Mapping[str, Any], levels: Mapping[str, Any] | None) -> bool | None:
    """`norm_maps` of another package's model; ArgumentError for another type, or for a classifier."""
    norm_maps = given.get("norm_maps")
    if norm_maps is not None:
        require_annotated(norm_maps, "norm_maps", bool)
        if levels is None:
            raise ArgumentError(
                "norm_maps chooses among the maps of another package's model: pass features_only=True too"
            )
    return norm_maps


def _with_norm(pyramid: Pyramid, norm_maps: bool | None) -> Pyramid:
    """The pyramid with maps after or before its last norm; None leaves them as they are."""
    if norm_maps is None or norm_maps == pyramid.maps_are_normed:
        return pyramid
    return pyramid.normed() if norm_maps else pyramid.raw()


def chosen_extractor(
    model: nn.Module, levels: Mapping[str, Any], saved: Sequence[int] | None = None
) -> FeatureExtractWrapper:
    """The extractor of these levels, or of those that were `saved` if none are chosen."""
    if levels["out_indices"] is None and levels["out_names"] is None:
        levels = {**levels, "out_indices": saved}
    return FeatureExtractWrapper(model, **levels)
