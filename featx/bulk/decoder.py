"""From an item to the pixels that the model takes, of pictures and of images with other numbers of channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from ..colour_profile import in_srgb
from ..errors import ArgumentError, ImageError, in_short
from ..images import Opening, open_sized, require_size
from ..picture_formats import identified
from ..preprocessing import DataConfig, cropped, stated, uncropped
from ..wrappers import FeatureExtractWrapper
from .config import Recipe
from .shard import Stamp, stamp_of
from .sources import Items

if TYPE_CHECKING:
    from tifffile import TiffFile

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Axes of tifffile's that are rows and columns of an image.
ROWS, COLUMNS = "Y", "X"


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item as the model takes it, (h, w, chs) of 8 bits or of floats up to 255, or the reason why not.

    size: (width, height) of its picture. stamp: of its file, taken before it was read.
    """

    item: int
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    reason: str = ""
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """From items to pixels; plain data, so that processes can have it.

    prepare: what `cropped` or `uncropped` of featx.preprocessing gives; for bands, from and to (h, w, bands).
    bands: channels of what is no picture for people; 0 for pictures.
    """

    items: Items
    prepare: Callable[..., Any]
    opening: Opening = Opening()
    bands: int = 0

    def __call__(self, item: int) -> Decoded:
        """Never raises: whatever is wrong with an image is the reason in what it returns."""
        try:
            stamp = stamp_of(self.items.where(item))
            content = self.items.read(item)
            if not content:
                raise ImageError("the file is empty")
            size, pixels = self._decoded(content)
            return Decoded(item, size, pixels, stamp=stamp)
        except ImageError as error:
            return Decoded(item, reason=str(error))
        except MemoryError:
            return Decoded(item, reason="not enough memory to decode it")

    def pixels(self, image: Image.Image) -> np.ndarray:
        """What the model takes of an image, (h, w, chs) of 8 bits."""
        return _pixels(self.prepare(image))

    def example(self) -> np.ndarray:
        """What the model takes of a black image."""
        if self.bands:
            return self.prepare(np.zeros((64, 96, self.bands), dtype=np.float32))
        return self.pixels(Image.new("RGB", (96, 64)))

    def _decoded(self, content: bytes) -> tuple[tuple[int, int], np.ndarray]:
        """(width, height) of the whole image, and what the model takes of it."""
        if self.bands:
            found = bands(content, self.bands, self.opening.max_pixels)
            return (found.shape[1], found.shape[0]), self.prepare(found)
        opened = open_sized(BytesIO(content), self.opening)
        image = self.prepare(opened.image, whole=opened.size, box=opened.box)
        return opened.size, _pixels(in_srgb(image, opened.profile))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class _Band(nn.Module):
    """What `cropped` and `uncropped` ask of a model, of one of its channels."""

    def __init__(self, config: DataConfig, band: int, size_divisor: int) -> None:
        super().__init__()
        self.data_config = replace(config, mean=config.mean[band : band + 1], std=config.std[band : band + 1])
        self.size_divisor = size_divisor


def _each(pixels: np.ndarray, *, prepare: Sequence[Callable[..., Image.Image]]) -> np.ndarray:
    """Every band prepared as if it was a gray picture, (h, w, chs)."""
    made = [np.asarray(one(Image.fromarray(np.ascontiguousarray(pixels[..., i])))) for i, one in enumerate(prepare)]
    return np.stack(made, axis=-1)


def decoder_for(
    extractor: FeatureExtractWrapper, items: Items, recipe: Recipe, max_pixels: int | None = None
) -> Decoder:
    """Raises ArgumentError for what `cropped` refuses, and for a model of one size where images keep their aspect."""
    config = stated(extractor, recipe.size)
    if recipe.keep_aspect and extractor.fixed_size is not None:
        height, width = extractor.fixed_size
        raise ArgumentError(f"keep_aspect: this model takes images of {height}x{width} pixels alone")
    prepared, sides = (uncropped, config.size) if recipe.keep_aspect else (cropped, config.resized())
    needed = min(sides) if recipe.keep_aspect else max(sides)
    # Decoding at a fraction averages pixels, and "nearest" asks for single ones.
    shorter = needed if recipe.scaled_decode and config.interpolation != "nearest" else None
    later = config.crop_mode != "border" and len(config.mean) == 3  # the border is filled, and gray made, in sRGB
    opening = Opening(recipe.color_management, recipe.allow_truncated, max_pixels, shorter, later)
    count = len(config.mean)
    if count in (1, 3):
        return Decoder(items, prepared(extractor, size=recipe.size), opening)
    each = [prepared(_Band(config, band, extractor.size_divisor)) for band in range(count)]
    return Decoder(items, partial(_each, prepare=each), opening, count)


def bands(content: bytes, count: int, max_pixels: int | None) -> np.ndarray:
    """(h, w, count) of float32: integers scaled so that the largest of their type is 255, floats times 255.

    Means and standard deviations of a DataConfig are of numbers from 0 to 1, and so are floats, as they are stored.
    Raises ImageError for an image of other channels, and for one that cannot be decoded.
    """
    found = _tiff(content, max_pixels) if content.startswith(TIFF_STARTS) else _picture(content, max_pixels)
    if found.shape[2] != count:
        raise ImageError(f"it has {found.shape[2]} channels, and the model takes {count}")
    if found.dtype.kind == "f":
        return found.astype(np.float32) * 255
    if found.dtype.kind != "u" or found.dtype.itemsize > 2:
        raise ImageError(f"pixels of {found.dtype} have no agreed range: convert them to uint8, uint16 or float32")
    return found.astype(np.float32) * np.float32(255 / np.iinfo(found.dtype).max)


def _picture(content: bytes, max_pixels: int | None) -> np.ndarray:
    with identified(content) as image:
        require_size(image.size, max_pixels)
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _tiff(content: bytes, max_pixels: int | None) -> np.ndarray:
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise ImageError("TIFF of several bands needs another package: pip install 'featx[bands]'") from error
    try:
        with TiffFile(BytesIO(content)) as file:
            return _first_image(file, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
        raise ImageError(f"tifffile cannot decode it: {in_short(error)}") from error


def _first_image(file: "TiffFile", max_pixels: int | None) -> np.ndarray:
    """(h, w, bands): channels of one page, or pages of one channel each."""
    series = file.series[0]
    axes = "".join(axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "XY")
    if len(axes) > 3 or not {ROWS, COLUMNS} <= set(axes):
        raise ImageError(f"its axes are {series.axes}, of {series.shape}: expected rows, columns and bands")
    size = dict(zip(series.axes, series.shape, strict=True))
    require_size((size[COLUMNS], size[ROWS]), max_pixels)
    pixels = series.asarray().reshape([size[axis] for axis in axes])
    pixels = np.moveaxis(pixels, (axes.index(ROWS), axes.index(COLUMNS)), (0, 1))
    return pixels if pixels.ndim == 3 else pixels[..., None]
