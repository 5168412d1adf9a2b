"""Decoding of images to the pixels that the model expects, for pictures and for images with any number of bands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from ..color_profile import in_srgb
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
# Names of tifffile for the axes of rows and columns.
ROWS, COLUMNS = "Y", "X"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded item, or the reason of its failure.

    Attributes:
        item: its index.
        size: (width, height) of the original image in pixels.
        pixels: (h, w, chs) for the model, of 8 bits, or floats up to 255; None after a failure.
        reason: of the failure, or "".
        stamp: of its file, taken before the file was read.
    """

    item: int
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    reason: str = ""
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """Decodes items to pixels. It is picklable, so that other processes can use it.

    Attributes:
        items: to decode.
        prepare: the result of `cropped` or `uncropped` of featx.preprocessing; for bands, from and to (h, w, bands).
        opening: options for opening image files.
        bands: number of channels of images that are not pictures; 0 for pictures.
    """

    items: Items
    prepare: Callable[..., Any]
    opening: Opening = Opening()
    bands: int = 0

    def __call__(self, item: int) -> Decoded:
        """Decode an item. An unreadable image raises nothing: the result contains the reason."""
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
        """Pixels (h, w, chs) of 8 bits for the model."""
        return _pixels(self.prepare(image))

    def example(self) -> np.ndarray:
        """Pixels of a black image, in the size of all images."""
        if self.bands:
            return self.prepare(np.zeros((64, 96, self.bands), dtype=np.float32))
        return self.pixels(Image.new("RGB", (96, 64)))

    def _decoded(self, content: bytes) -> tuple[tuple[int, int], np.ndarray]:
        """(width, height) of the whole image, and the pixels for the model."""
        if self.bands:
            image = bands(content, self.bands, self.opening.max_pixels)
            return (image.shape[1], image.shape[0]), self.prepare(image)
        opened = open_sized(BytesIO(content), self.opening)
        image = self.prepare(opened.image, whole=opened.size, box=opened.box)
        return opened.size, _pixels(in_srgb(image, opened.profile))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class _Band(nn.Module):
    """The attributes that `cropped` and `uncropped` need from a model, for one of its channels."""

    def __init__(self, config: DataConfig, band: int, size_divisor: int) -> None:
        super().__init__()
        self.data_config = replace(config, mean=config.mean[band : band + 1], std=config.std[band : band + 1])
        self.size_divisor = size_divisor


def _prepare_bands(pixels: np.ndarray, *, prepare: Sequence[Callable[..., Image.Image]]) -> np.ndarray:
    """Apply each function to one band, as to a gray image; (h, w, bands)."""
    images = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(len(prepare))]
    return np.stack([np.asarray(function(image)) for function, image in zip(prepare, images, strict=True)], axis=-1)


def decoder_for(
    extractor: FeatureExtractWrapper, items: Items, recipe: Recipe, max_pixels: int | None = None
) -> Decoder:
    """The decoder for a model and a recipe.

    Raises:
        ArgumentError: `cropped` does not support the configuration, or the recipe keeps the aspect and the model has a
            fixed image size.
    """
    config = stated(extractor, recipe.size)
    if recipe.keep_aspect and extractor.fixed_size is not None:
        height, width = extractor.fixed_size
        raise ArgumentError(f"keep_aspect: this model takes images of {height}x{width} pixels alone")
    prepared, sides = (uncropped, config.size) if recipe.keep_aspect else (cropped, config.resized())
    needed = min(sides) if recipe.keep_aspect else max(sides)
    # Decoding at a fraction averages pixels, but "nearest" needs single ones.
    shorter = needed if recipe.scaled_decode and config.interpolation != "nearest" else None
    later = config.crop_mode != "border" and len(config.mean) == 3  # border color and gray conversion need sRGB
    opening = Opening(recipe.color_management, recipe.allow_truncated, max_pixels, shorter, later)
    count = len(config.mean)
    if count in (1, 3):
        return Decoder(items, prepared(extractor, size=recipe.size), opening)
    functions = [prepared(_Band(config, band, extractor.size_divisor)) for band in range(count)]
    return Decoder(items, partial(_prepare_bands, prepare=functions), opening, count)


def bands(content: bytes, count: int, max_pixels: int | None) -> np.ndarray:
    """Decode an image with `count` bands: float32 (h, w, count), where 255 is the maximum of an integer type, or 1.0.

    The mean and std of a DataConfig, and stored floats, are in the range 0 to 1.

    Raises:
        ImageError: the image has another number of channels, or cannot be decoded.
    """
    pixels = _tiff(content, max_pixels) if content.startswith(TIFF_STARTS) else _picture(content, max_pixels)
    if pixels.shape[2] != count:
        raise ImageError(f"it has {pixels.shape[2]} channels, and the model takes {count}")
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32) * 255
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise ImageError(f"pixels of {pixels.dtype} have no agreed range: convert them to uint8, uint16 or float32")
    return pixels.astype(np.float32) * np.float32(255 / np.iinfo(pixels.dtype).max)


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
    except Exception as error:  # decoders raise exceptions of any class for damaged files
        raise ImageError(f"tifffile cannot decode it: {in_short(error)}") from error


def _first_image(file: "TiffFile", max_pixels: int | None) -> np.ndarray:
    """(h, w, bands): the channels of one page, or pages with one channel each."""
    series = file.series[0]
    axes = "".join(axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "XY")
    if len(axes) > 3 or not {ROWS, COLUMNS} <= set(axes):
        raise ImageError(f"its axes are {series.axes}, of {series.shape}: expected rows, columns and bands")
    size = dict(zip(series.axes, series.shape, strict=True))
    require_size((size[COLUMNS], size[ROWS]), max_pixels)
    pixels = series.asarray().reshape([size[axis] for axis in axes])
    pixels = np.moveaxis(pixels, (axes.index(ROWS), axes.index(COLUMNS)), (0, 1))
    return pixels if pixels.ndim == 3 else pixels[..., None]
