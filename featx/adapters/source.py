"""What adapters ask of the sources they take and of the packages they serve."""

from collections.abc import Sequence
from importlib import import_module
from math import lcm, log2
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import Backbone
from ..errors import ArgumentError, ContractError, MissingPackageError
from ..features import Levels
from ..necks import Neck, Pipeline, Resample, SimpleFeaturePyramid
from ..necks.pipeline import cells_along
from ..preprocessing import DataConfig
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in, pyramid_of

# Strides, in pixels, of the maps of a simple pyramid, whatever the patch of its transformer.
STRIDES = (4, 8, 16, 32)


def require_source(source: object) -> FeatureExtractWrapper:
    """The source itself; ArgumentError if it is something else, such as a classifier."""
    if not isinstance(source, FeatureExtractWrapper):
        raise ArgumentError(
            f"an adapter takes a feature extractor, got {type(source).__name__}: pass create_model(..., "
            "features_only=True), FeatureExtractWrapper(model, out_indices) or a Pipeline of such and necks"
        )
    return source


def maps_of(source: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of images (N, C, H, W), whatever `output` the source was asked for."""
    return maps_in(source(x))


def statistics(source: FeatureExtractWrapper) -> DataConfig:
    """The mean and std that the source expects; ArgumentError if it states none, others than it takes, or BGR."""
    data, channels = source.data_config, source.in_chans
    if data is None:
        raise ArgumentError(
            "the source does not say how its images are normalised: set data_config = featx.DataConfig(...) on the "
            "model before it is wrapped"
        )
    if channels is not None and not len(data.mean) == len(data.std) == channels:
        raise ArgumentError(
            f"the source takes {channels} channels, but its data_config has {len(data.mean)} means and "
            f"{len(data.std)} deviations: give it a DataConfig with one for each channel"
        )
    if data.channel_order != "rgb":
        raise ArgumentError(
            "the source takes channels in the order BGR, and would be given RGB: take a backbone for RGB, such as "
            "mobilevit_s, which flips the first convolution of MobileViT's weights when they are loaded"
        )
    return data


def require_names(names: Sequence[str], source: FeatureExtractWrapper) -> tuple[str, ...]:
    """The names themselves; ArgumentError unless there is a different one for each level."""
    if len(set(names)) != len(source.feature_info) or len(names) != len(source.feature_info):
        raise ArgumentError(
            f"{len(names)} names {list(names)} for {len(source.feature_info)} levels: give each level its own\n"
            f"{source.feature_info}"
        )
    return tuple(names)


def require_package(module: str, extra: str) -> Any:
    """The module of another package; MissingPackageError, with how to get it, if that is missing or too old."""
    package = module.partition(".")[0]
    try:
        found: ModuleType = import_module(module)
    except ImportError as error:
        try:
            import_module(package)
        except ImportError:
            raise MissingPackageError(f"this adapter needs the package {package}: {extra}") from error
        raise MissingPackageError(
            f"the installed {package} has no {module}, so it is too old for this adapter: {extra}"
        ) from error
    return found


def require_levels(source: FeatureExtractWrapper, count: int, owner: str) -> None:
    """ContractError unless the source has exactly so many levels."""
    if len(source.feature_info) != count:
        raise ContractError(
            f"{owner} takes {count} maps, the source has {len(source.feature_info)}: choose with out_indices\n"
            f"{source.feature_info}"
        )


def simple_pyramid(plain: FeatureExtractWrapper, chs: int, chosen: Sequence[int] | None) -> FeatureExtractWrapper:
    """Maps of a SimpleFeaturePyramid at these positions among STRIDES, None for all, of a source of one level.

    A map whose stride is no power of two is resampled to the nearest one first. There is no branch that no chosen map
    needs, as far as branches have consecutive strides.
    """
    if len(strides := sorted({row["reduction"] for row in plain.feature_info.info})) > 1:
        raise ArgumentError(
            f"pyramid_channels={chs} makes a pyramid of a plain transformer, and this backbone has maps of strides "
            f"{strides} already: leave it out"
        )
    positions = [position % len(STRIDES) for position in (range(len(STRIDES)) if chosen is None else chosen)]
    first = min(positions)
    patch = plain.feature_info[0].reduction
    stride = 2 ** round(log2(patch))
    necks: list[Neck] = [] if stride == patch else [Resample(plain.feature_info, stride)]
    levels = necks[0].feature_info if necks else plain.feature_info
    scales = [stride / deeper for deeper in STRIDES[first : max(positions) + 1]]
    necks.append(SimpleFeaturePyramid(levels, chs, scale_factors=scales))
    return FeatureExtractWrapper(pyramid_of(Pipeline(plain, *necks)), [position - first for position in positions])


def enlarges(source: FeatureExtractWrapper) -> bool:
    """Whether maps have other sizes than side / stride where sides are multiples of the deepest stride."""
    deepest = max(source.feature_info.reduction())
    return not exact(source, lcm(source.size_divisor, deepest), deepest)


def resized_to_strides(maps: Sequence[Tensor], levels: Levels, image: Tensor) -> list[Tensor]:
    """The maps of images (N, C, H, W), resized to (N, chs, H / stride, W / stride), rounded up.

    The corners stay in place, as they do where families enlarge maps.
    """
    height, width = image.shape[2:]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in levels.reduction()]
    return [
        F.interpolate(map_, size, mode="bilinear", align_corners=True) for map_, size in zip(maps, sizes, strict=True)
    ]


def side_multiple(source: FeatureExtractWrapper, deepest: int) -> int:
    """Pixels: sides that are multiples of it make every map of a stride up to `deepest` exactly side / stride cells.

    It is the source's `size_divisor` and `deepest` in one, or more in families that enlarge maps to whole patches.
    """
    least = lcm(source.size_divisor, deepest)
    return next((multiple for multiple in (least, 2 * least, 4 * least) if exact(source, multiple, deepest)), least)


def exact(source: FeatureExtractWrapper, multiple: int, deepest: int) -> bool:
    """Whether sides that are multiples of so many pixels give maps of side / stride cells, for strides to `deepest`.

    A model without a size rule is taken to keep to it.
    """
    if not isinstance(source.source, Backbone):
        return True
    sides, strides = (multiple, 2 * multiple, 3 * multiple), source.feature_info.reduction()
    return all(
        cells == side // stride
        for side in sides
        for cells, stride in zip(cells_along(source, side), strides, strict=True)
        if stride <= deepest
    )
