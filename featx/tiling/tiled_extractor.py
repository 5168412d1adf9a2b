"""Extract the maps of an image of any size in bounded memory, tile by tile."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, InputError
from ..features import Levels
from ..whole_files import local
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .grid import Axis, blended_axis, exact_axis
from .receptive_field import Margins, receptive_margins, unit_of
from .windows import Windows

Overlap = int | Literal["auto"]
SIDE = 512  # pixels of a tile
# Multiples of the deepest cell that tiles start at: networks with branches of larger strides (HRNet) need several.
ALIGNMENTS = (1, 2, 4, 8)
EXACT = 1e-5  # largest difference of a stitched map from the whole map, relative to its largest value
BLENDED = 0.25  # share of a tile that overlaps the next one, if no margin makes tiles exact


class TiledExtractor:
    """An extractor for images of any size: it runs on overlapping tiles and stitches their maps.

    It is safe to call from several threads if the extractor is.

    Attributes:
        extractor: the extractor of a tile.
        feature_info: its levels, which are those of the stitched maps.
        margins: pixels around a tile's cells that are read and dropped; None if tiles are blended.
        is_exact: whether stitched maps equal those of the whole image up to 1e-5 of their largest value. This was
            measured when the object was built.
    """

    def __init__(self, extractor: FeatureExtractWrapper, tile: int | None, overlap: Overlap) -> None:
        self.extractor, self.feature_info, self._unit = extractor, extractor.feature_info, unit_of(extractor)
        self.margins, self._tile = None, tile or SIDE
        if overlap == "auto" and extractor.fixed_size is None:
            self._find_margins(tile)
        self._overlap = int(BLENDED * self._tile) if overlap == "auto" else overlap

    def _find_margins(self, tile: int | None) -> None:
        """Set the margins, and the unit and default side of tiles, with which tiles are stitched exactly, if any."""
        smallest = self._unit
        for factor in ALIGNMENTS:
            self._unit = smallest * factor
            self.margins = receptive_margins(self.extractor, self._unit)
            if self.margins is None:
                break
            self._tile = tile or _enough(self.margins)
            if self._stitches_exactly():
                return
        self._unit, self.margins, self._tile = smallest, None, tile or SIDE

    @property
    def is_exact(self) -> bool:
        """Whether stitched maps equal those of the whole image."""
        return self.margins is not None

    def __call__(self, image: Tensor | Windows, out: str | Path | None = None) -> list[Tensor]:
        """The maps of one image (1, chs, h, w), one per level.

        Args:
            image: a tensor (1, C, H, W), or an image that is read in windows.
            out: a folder. Maps are written there as level_0.npy, level_1.npy, … and returned memory-mapped, so that
                they need no memory; by default they are in memory.

        Raises:
            InputError: the image is not one image, or not accepted by the extractor.
            ArgumentError: `tile` is too small for `overlap`.
        """
        windows = _TensorWindows(image) if isinstance(image, Tensor) else image
        height, width = windows.size
        rows, columns = self._axis(height, 2), self._axis(width, 3)
        folder = None if out is None else local(out)
        stitched: list[_Stitched] = []
        for row, column in product(range(len(rows.starts)), range(len(columns.starts))):
            window = windows.read(rows.starts[row], columns.starts[column], rows.size, columns.size)
            maps = self._maps(window)
            if not stitched:
                stitched = list(_outputs(maps, self.feature_info, rows, columns, folder))
            for target, map_ in zip(stitched, maps, strict=True):
                target.add(map_, row, column)
        return [target.map for target in stitched]

    @torch.no_grad()
    def _maps(self, window: Tensor) -> list[Tensor]:
        parameter = next(self.extractor.parameters(), None)
        images = window[None] if parameter is None else window[None].to(parameter.device, parameter.dtype)
        return [map_.float().cpu() for map_ in maps_in(self.extractor(images))]

    def _axis(self, length: int, axis: int) -> Axis:
        fixed = self.extractor.fixed_size
        tile = self._tile if fixed is None else fixed[axis - 2]
        if fixed is not None and (length < tile or (length - tile) % self._unit):
            raise InputError(
                f"this extractor accepts tiles of {fixed} pixels alone: resize or pad the image to sides of "
                f"{tile} plus multiples of {self._unit}, got {length}"
            )
        if self.margins is not None:
            before = self.margins.top if axis == 2 else self.margins.left
            after = self.margins.bottom if axis == 2 else self.margins.right
            return exact_axis(length, tile, self._unit, before, after)
        return blended_axis(length, tile, self._unit, self._overlap)

    def _stitches_exactly(self) -> bool:
        """Whether a strip of random pixels in both directions has the same maps in tiles as in one piece."""
        unit = self._unit
        short, long = 2 * unit + 1, self._tile + max(self._tile // 2, 2 * unit) + 1  # no multiples of the unit
        if self.extractor.size_divisor > 1:
            short, long = (side // unit * unit for side in (short, long))
        for size in ((short, long), (long, short)):
            generator = torch.Generator().manual_seed(0)
            channels = self.extractor.in_chans or 3
            image = torch.randn(1, channels, *size, generator=generator)
            for stitched, whole in zip(self(image), self._maps(image[0]), strict=True):
                if not bool((stitched - whole).abs().max() <= EXACT * whole.abs().max()):
                    return False
        return True


def tiled(extractor: FeatureExtractWrapper, tile: int | None = None, overlap: Overlap = "auto") -> TiledExtractor:
    """An extractor of images of any size, larger than memory, too.

    Args:
        extractor: an extractor in eval mode.
        tile: longest side of a tile in pixels; by default 512, or twice the receptive field if that is larger. Larger
            tiles waste less time on their margins, and need memory proportional to tile squared.
        overlap: "auto" for the extractor's receptive field, which makes the maps equal to those of the whole image; for
            extractors whose cells depend on the whole image (attention, squeeze-and-excitation, global norms), a
            quarter of the tile, which is blended linearly. A number of pixels blends any extractor.

    Returns:
        The tiled extractor; its `is_exact` says which of both it is.

    Raises:
        ArgumentError: `tile` or `overlap` is not positive, `tile` is too small for the receptive field, or the
            extractor is in training mode.
    """
    if not isinstance(extractor, FeatureExtractWrapper):
        raise ArgumentError(f"expected an extractor, got {type(extractor).__name__}: features_only=True builds one")
    if tile is not None and (not isinstance(tile, int) or tile < 1):
        raise ArgumentError(f"tile={tile!r}: expected the side of a tile in pixels, such as 512")
    if overlap != "auto" and (not isinstance(overlap, int) or overlap < 0):
        raise ArgumentError(f"overlap={overlap!r}: expected 'auto' or a number of pixels, such as 64")
    if extractor.training:
        raise ArgumentError("tiles are for inference, where norms do not depend on the batch: call .eval() first")
    return TiledExtractor(extractor, tile, overlap)


def _enough(margins: Margins | None) -> int:
    """The default side of a tile."""
    return SIDE if margins is None else max(SIDE, 2 * max(margins.top + margins.bottom, margins.left + margins.right))


class _TensorWindows:
    def __init__(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[0] != 1:
            raise InputError(f"expected one image (1, C, H, W), got shape {tuple(image.shape)}: call once per image")
        self._image, self.size = image, (int(image.shape[2]), int(image.shape[3]))

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        return self._image[0, :, top : top + height, left : left + width]


class _Stitched:
    """The map of one level, to which the maps of tiles are added. The methods take rows and columns of tiles."""

    def __init__(self, map_: Tensor, rows: Axis, columns: Axis, shape: tuple[int, ...], reduction: int) -> None:
        self.map, self._rows, self._columns, self._reduction = map_, rows, columns, reduction
        self._is_exact = rows.before is not None
        self._weights = rows.weights(shape[2], reduction), columns.weights(shape[3], reduction)

    def add(self, map_: Tensor, row: int, column: int) -> None:
        """Add the map of a tile, at its place and with its weights."""
        down, across = self._weights[0][row], self._weights[1][column]
        top, left = self._rows.starts[row] // self._reduction, self._columns.starts[column] // self._reduction
        vertical, horizontal = (_nonzero(weight) for weight in (down, across))
        part = map_[:, :, vertical, horizontal]
        place = self.map[:, :, _shifted(vertical, top), _shifted(horizontal, left)]
        if self._is_exact:
            place.copy_(part)
        else:
            place += part * (down[vertical, None] * across[horizontal])


def _outputs(maps: list[Tensor], levels: Levels, rows: Axis, columns: Axis, folder: Path | None) -> Iterator[_Stitched]:
    for index, (level, map_) in enumerate(zip(levels, maps, strict=True)):
        cells = rows.cells(map_.shape[2], level.reduction), columns.cells(map_.shape[3], level.reduction)
        target = _zeros((1, level.chs, *cells), None if folder is None else folder / f"level_{index}.npy")
        yield _Stitched(target, rows, columns, tuple(map_.shape), level.reduction)


def _zeros(shape: tuple[int, ...], path: Path | None) -> Tensor:
    if path is None:
        return torch.zeros(shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.from_numpy(np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape))


def _nonzero(weight: Tensor) -> slice:
    positions = weight.nonzero().flatten()
    return slice(int(positions[0]), int(positions[-1]) + 1)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
