"""Images of other numbers of channels than 1 and 3, such as those of satellites, which are no pictures for people."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ImageError, in_short
from ..images import require_size
from ..picture_formats import identified

if TYPE_CHECKING:
    from tifffile import TiffFile

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Axes of tifffile's that are rows and columns of an image.
ROWS, COLUMNS = "Y", "X"


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
