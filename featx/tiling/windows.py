"""Images that are read in windows, so that an image larger than memory is never decoded as a whole."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..preprocessing import DataConfig


class Windows(Protocol):
    """An image that is read in windows. size: (height, width) in pixels."""

    @property
    def size(self) -> tuple[int, int]: ...

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The normalized pixels (C, height, width) of a window."""
        ...


def normalized(pixels: Tensor, config: DataConfig, scale: float) -> Tensor:
    """Pixels (C, height, width) as a model's weights expect them, in float32. scale: the value that becomes 1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.mean, config.std))
    numbers = (pixels.float() / scale - mean) / std
    return numbers.flip(0) if config.channel_order == "bgr" else numbers


class ArrayWindows:
    """Windows of an array (H, W, C) of uint8: NumPy's, memory-mapped, or Zarr's, such as tifffile's of a tiled TIFF.

    Args:
        array: the pixels, RGB. Only slices of it are read.
        data_config: mean, standard deviation and order of the channels, as in `extractor.data_config`.

    Raises:
        InputError: the array has another shape or dtype.
    """

    def __init__(self, array: Any, data_config: DataConfig) -> None:
        channels = len(data_config.mean)
        if len(array.shape) != 3 or array.shape[2] != channels or str(array.dtype) != "uint8":
            raise InputError(
                f"expected an array (height, width, {channels}) of uint8, got {array.dtype} of shape "
                f"{tuple(array.shape)}: a grayscale image is array[..., None].repeat(3, 2)"
            )
        self._array, self._config = array, data_config

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self._array.shape[:2]
        return int(height), int(width)

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """The normalized pixels (C, height, width) of a window, float32."""
        pixels = torch.tensor(self._array[top : top + height, left : left + width]).permute(2, 0, 1)
        return normalized(pixels, self._config, 255)
