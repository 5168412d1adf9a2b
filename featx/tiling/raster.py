"""Windows of raster files: GeoTIFF, tiled TIFF and other formats that GDAL reads, through rasterio."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ImageError, MissingPackageError
from ..preprocessing import DataConfig
from .windows import normalized

# Formats that hold their pixels themselves. Others, such as VRT, can name any other file or address.
DRIVERS = ("GTiff", "PNG", "JPEG", "JP2OpenJPEG")
WHITE = {"uint8": 255.0, "uint16": 65535.0}

Affine = tuple[float, float, float, float, float, float]


class RasterWindows:
    """Windows of a raster file, read without decoding the whole file where the format allows it (tiled TIFF).

    It is safe to call from several threads.

    Args:
        path: a TIFF, PNG, JPEG or JPEG 2000 file.
        data_config: mean and standard deviation of the channels, as in `extractor.data_config`.
        bands: numbers of the bands, from 1, in the order of the channels; by default the first ones.
        scale: the pixel value that becomes 1 before normalization; by default 255 for uint8 and 65535 for uint16.
            Sentinel-2 uses 10000.

    Attributes:
        size: (height, width) in pixels.
        crs: the coordinate reference system as WKT; "" without one.
        transform: (a, b, c, d, e, f), so that x = a * column + b * row + c and y = d * column + e * row + f are the
            coordinates of the upper left corner of a pixel.

    Raises:
        MissingPackageError: rasterio is not installed.
        ImageError: the file cannot be read.
        ArgumentError: it does not have these bands, or its dtype needs a `scale`.
    """

    def __init__(
        self,
        path: str | Path,
        data_config: DataConfig,
        *,
        bands: Sequence[int] | None = None,
        scale: float | None = None,
    ) -> None:
        self._path, self._lock, self._file = Path(path), Lock(), _opened(Path(path))
        channels = len(data_config.mean)
        self._bands = list(range(1, channels + 1)) if bands is None else list(bands)
        self._require_bands(channels)
        dtype = str(self._file.dtypes[0])
        if scale is None and dtype not in WHITE:
            raise ArgumentError(f"{path} has pixels of {dtype}: pass scale=, the value that becomes 1")
        self._scale = WHITE[dtype] if scale is None else float(scale)
        self._config = data_config
        self.size: tuple[int, int] = (int(self._file.height), int(self._file.width))
        self.crs = self._file.crs.to_wkt() if self._file.crs else ""
        self.transform: Affine = tuple(self._file.transform)[:6]

    def _require_bands(self, channels: int) -> None:
        count = self._file.count
        if len(self._bands) != channels or not all(1 <= band <= count for band in self._bands):
            raise ArgumentError(
                f"the model takes {channels} channels, and {self._path} has {count} bands, got bands={self._bands}: "
                f"pass the numbers of {channels} bands from 1 to {count}; a grayscale image is bands={[1] * channels}"
            )

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The normalized pixels (C, height, width) of a window, float32. ImageError if the file is damaged there."""
        from rasterio.errors import RasterioError

        window = ((top, min(top + height, self.size[0])), (left, min(left + width, self.size[1])))
        with self._lock:  # GDAL's files are not thread-safe
            try:
                pixels = self._file.read(self._bands, window=window)
            except RasterioError as error:
                reason = error.__cause__ or error  # of GDAL
                raise ImageError(f"{self._path} cannot be read at row {top}, column {left}: {reason}") from error
        return normalized(torch.from_numpy(pixels.astype(np.float32)), self._config, self._scale)

    def transform_of(self, reduction: int) -> Affine:
        """`transform` of the cells of a map with that reduction."""
        a, b, c, d, e, f = self.transform
        return (a * reduction, b * reduction, c, d * reduction, e * reduction, f)


def _opened(path: Path) -> Any:
    try:
        from rasterio import DatasetReader, Env
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise MissingPackageError("raster files need the package rasterio: pip install 'featx[geo]'") from error
    if not path.is_file():  # GDAL would open addresses, too
        raise ImageError(f"{path} is not a file")
    with catch_warnings(), Env():  # which registers the drivers
        filterwarnings("ignore", category=NotGeoreferencedWarning)  # photographs have no coordinates
        try:
            return DatasetReader(path, driver=DRIVERS)  # `open` takes a single driver
        except RasterioError as error:
            raise ImageError(f"{path} cannot be read as {', '.join(DRIVERS)}: {error}") from error
