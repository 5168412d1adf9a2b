"""Checks and conversions of sources that adapters share, and the import of optional packages."""

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

# Strides in pixels of the maps of a simple pyramid, for any patch size of its transformer.
STRIDES = (4, 8, 16, 32)


def require_source(source: object) -> FeatureExtractWrapper:
    """The source itself. ArgumentError if it is not a feature extractor."""
    if not isinstance(source, FeatureExtractWrapper):
        raise ArgumentError(
            f"an adapter takes a feature extractor, got {type(source).__name__}: pass create_model(..., "
            "features_only=True), FeatureExtractWrapper(model, out_indices) or a Pipeline of such and necks"
        )
    return source


def maps_of(source: nn.Module, x: Tensor) -> list[Tensor]:
    """The maps of images (N, C, H, W), for any `output` format of the source."""
    return maps_in(source(x))


def statistics(source: FeatureExtractWrapper) -> DataConfig:
    """The source's DataConfig. ArgumentError without one, with another number of channels, or for BGR channels."""
    data, channels = source.data_config, source.in_chans
    if data is None:
        raise ArgumentError(
            "the source does not say how its images are normalized: set data_config = featx.DataConfig(...) on the "
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
    """The names themselves. ArgumentError unless each level has a different one."""
    if len(set(names)) != len(source.feature_info) or len(names) != len(source.feature_info):
        raise ArgumentError(
            f"{len(names)} names {list(names)} for {len(source.feature_info)} levels: give each level its own\n"
            f"{source.feature_info}"
        )
    return tuple(names)


def require_package(module: str, extra: str) -> Any:
    """Import a module of another package. MissingPackageError, with `extra` as advice, if it is missing or too old."""
    package = module.partition(".")[0]
    try:
        imported: ModuleType = import_module(module)
    except ImportError as error:
        try:
            import_module(package)
        except ImportError:
            raise MissingPackageError(f"this adapter needs the package {package}: {extra}") from error
        raise MissingPackageError(
            f"the installed {package} has no {module}, so it is too old for this adapter: {extra}"
        ) from error
    return imported


def require_levels(source: FeatureExtractWrapper, count: int, owner: str) -> None:
    """ContractError unless the source has exactly `count` levels."""
    if len(source.feature_info) != count:
        raise ContractError(
            f"{owner} takes {count} maps, the source has {len(source.feature_info)}: choose with out_indices\n"
            f"{source.feature_info}"
        )


def simple_pyramid(plain: FeatureExtractWrapper, chs: int, indices: Sequence[int] | None) -> FeatureExtractWrapper:
    """A SimpleFeaturePyramid on a source of one level.

    A map whose stride is not a power of two is first resampled to the nearest one. Branches below the first and above
    the last selected stride are not built.

    Args:
        plain: the source.
        chs: channels of the maps.
        indices: positions among STRIDES of the maps to return; None for all.
    """
    if len(strides := sorted({row["reduction"] for row in plain.feature_info.info})) > 1:
        raise ArgumentError(
            f"pyramid_channels={chs} makes a pyramid of a plain transformer, and this backbone has maps of strides "
            f"{strides} already: leave it out"
        )
    positions = [position % len(STRIDES) for position in (range(len(STRIDES)) if indices is None else indices)]
    first = min(positions)
    patch = plain.feature_info[0].reduction
    stride = 2 ** round(log2(patch))
    necks: list[Neck] = [] if stride == patch else [Resample(plain.feature_info, stride)]
    levels = necks[0].feature_info if necks else plain.feature_info
    scales = [stride / deeper for deeper in STRIDES[first : max(positions) + 1]]
    necks.append(SimpleFeaturePyramid(levels, chs, scale_factors=scales))
    return FeatureExtractWrapper(pyramid_of(Pipeline(plain, *necks)), [position - first for position in positions])


def enlarges(source: FeatureExtractWrapper) -> bool:
    """Whether maps differ in size from side / stride for sides that are multiples of the deepest stride."""
    deepest = max(source.feature_info.reduction())
    return not exact(source, lcm(source.size_divisor, deepest), deepest)


def resized_to_strides(maps: Sequence[Tensor], levels: Levels, image: Tensor) -> list[Tensor]:
    """Maps resized to (N, chs, H / stride, W / stride), rounded up, with aligned corners as in families that enlarge.

    Args:
        maps: one per level.
        levels: the levels.
        image: the images (N, C, H, W).
    """
    height, width = image.shape[2:]
    sizes = [(-(-height // stride), -(-width // stride)) for stride in levels.reduction()]
    return [
        F.interpolate(map_, size, mode="bilinear", align_corners=True) for map_, size in zip(maps, sizes, strict=True)
    ]


def side_multiple(source: FeatureExtractWrapper, deepest: int) -> int:
    """Pixels such that sides that are multiples of it give side / stride cells in every map of stride <= `deepest`.

    It is the least common multiple of the source's `size_divisor` and `deepest`, or 2 or 4 times that in families that
    enlarge maps to whole patches.
    """
    least = lcm(source.size_divisor, deepest)
    return next((multiple for multiple in (least, 2 * least, 4 * least) if exact(source, multiple, deepest)), least)


def exact(source: FeatureExtractWrapper, multiple: int, deepest: int) -> bool:
    """Whether sides that are multiples of `multiple` pixels give side / stride cells, for strides up to `deepest`.

    True for a model without a size rule.
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
