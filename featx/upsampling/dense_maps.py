"""`upsample`: the maps of an extractor at the resolution of the image."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..arguments import require_size
from ..errors import ContractError, InputError
from ..features import FeatureInfo
from ..image_checks import check_images
from .joint_bilateral import JointBilateral
from .upsampler import Upsampler

GUIDED = JointBilateral()


def upsample(
    maps: Sequence[Tensor],
    images: Tensor,
    levels: Sequence[FeatureInfo],
    upsampler: Upsampler = GUIDED,
    *,
    size: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Upsample maps to the resolution of their images.

    Cells lie where `levels` states: cell (i, j) covers the pixels from (i, j) * reduction, also if the sides of the
    image are not multiples of the reduction. Borders of images and maps are repeated up to whole cells, and the result
    is cropped to the image.

    Args:
        maps: the maps of an extractor, (N, chs, h, w) each.
        images: the images (N, in_chans, H, W) that the maps were computed from, as the extractor received them.
        levels: the extractor's `feature_info`, one level per map.
        upsampler: by default joint bilateral upsampling, which follows the edges of the image; `Bilinear()` for
            interpolation, or a trained upsampler.
        size: (height, width) of the result in pixels; by default that of the images.

    Returns:
        One map (N, chs, height, width) per level.

    Raises:
        InputError: the maps do not fit the images and the levels.
        ArgumentError: `size` is not a pair of positive numbers.
        ContractError: the upsampler returned another shape.
    """
    check_images(images, None)
    if len(maps) != len(levels):
        raise InputError(f"{len(maps)} maps for {len(levels)} levels: pass the extractor's feature_info, one per map")
    size = (images.shape[2], images.shape[3]) if size is None else require_size(size, "size")
    return [_upsample(map_, images, level, upsampler, size) for map_, level in zip(maps, levels, strict=True)]


def _upsample(map_: Tensor, images: Tensor, level: FeatureInfo, upsampler: Upsampler, size: tuple[int, int]) -> Tensor:
    sides = images.shape[2:]
    cells = [-(-side // level.reduction) for side in sides]
    _check_map(map_, images, level, cells)
    whole = [count * level.reduction for count in cells]
    # a side of the result for whole cells, rounded to pixels if the result is resized
    height, width = (round(wanted * full / side) for wanted, full, side in zip(size, whole, sides, strict=True))
    dense = upsampler(_padded(images, whole), _padded(map_, cells), (height, width))
    expected = (*map_.shape[:2], height, width)
    if not isinstance(dense, Tensor) or tuple(dense.shape) != expected:
        got = tuple(dense.shape) if isinstance(dense, Tensor) else type(dense).__name__
        raise ContractError(
            f"{type(upsampler).__name__} returned {got}, expected {expected}: a module that is called with the map "
            "first, or chooses the size itself, needs MapFirst(module)"
        )
    return dense[:, :, : size[0], : size[1]]


def _check_map(map_: Tensor, images: Tensor, level: FeatureInfo, cells: Sequence[int]) -> None:
    """InputError unless the map has the level's channels and as many cells as the image, rounded up or down."""
    height, width = images.shape[2:]
    is_map = isinstance(map_, Tensor) and map_.ndim == 4
    fits = is_map and map_.shape[:2] == (images.shape[0], level.chs)
    floors = [max(1, side // level.reduction) for side in (height, width)]
    if not fits or any(n not in pair for n, *pair in zip(map_.shape[2:], cells, floors, strict=True)):
        got = tuple(map_.shape) if isinstance(map_, Tensor) else type(map_).__name__
        expected = (images.shape[0], level.chs, *cells)
        raise InputError(
            f"{level.name}: got a map {got} for {images.shape[0]} images of {height}x{width} pixels, expected "
            f"{expected} at 1/{level.reduction}: pass the images that the maps were computed from, with sides that are "
            "multiples of the reduction"
        )


def _padded(tensor: Tensor, sides: Sequence[int]) -> Tensor:
    """Repeat the last row and column of (N, C, h, w) up to the given sides."""
    below, right = (side - now for side, now in zip(sides, tensor.shape[2:], strict=True))
    return F.pad(tensor, (0, right, 0, below), mode="replicate") if below or right else tensor
