"""The interface of upsamplers, bilinear interpolation, and an adapter for modules that take the map first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Upsampler(Protocol):
    """A function or module that upsamples a map with the image that it was computed from.

    AnyUp (https://arxiv.org/abs/2510.12764) and JAFAR (https://arxiv.org/abs/2506.11136) have this interface.
    `upsample` calls it with images whose sides are whole cells, so that cell (i, j) covers the pixels from
    (i, j) * reduction to (i + 1, j + 1) * reduction.
    """

    def __call__(self, images: Tensor, map_: Tensor, size: tuple[int, int], /) -> Tensor:
        """Upsample a map.

        Args:
            images: (N, in_chans, H, W), normalized as for the extractor.
            map_: (N, chs, h, w).
            size: (height, width) of the result.

        Returns:
            (N, chs, height, width).
        """
        ...


@dataclass(frozen=True, slots=True)
class Bilinear:
    """Bilinear interpolation, which does not use the image."""

    def __call__(self, images: Tensor, map_: Tensor, size: tuple[int, int], /) -> Tensor:
        """Interpolate (N, chs, h, w) to (N, chs, *size)."""
        del images
        return F.interpolate(map_, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True, slots=True)
class MapFirst:
    """An upsampler from a module that is called with (map, images) and chooses the size of its result itself.

    FeatUp's stack of joint bilateral upsamplers (https://arxiv.org/abs/2403.10516), which returns 16 times the size of
    the map, and LoftUp (https://arxiv.org/abs/2504.14032), which returns the size of the image, are such modules. A
    result of another size than the requested one is interpolated bilinearly.

    Args:
        module: called with (N, chs, h, w) and (N, in_chans, H, W); returns (N, chs, height, width).
    """

    module: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, map_: Tensor, size: tuple[int, int], /) -> Tensor:
        """Upsample (N, chs, h, w) to (N, chs, *size)."""
        return resized(self.module(map_, images), size)


def resized(map_: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (N, chs, h, w) bilinearly to (N, chs, *size), with a low-pass filter if it shrinks."""
    if tuple(map_.shape[2:]) == size:
        return map_
    return F.interpolate(map_, size, mode="bilinear", align_corners=False, antialias=True)
