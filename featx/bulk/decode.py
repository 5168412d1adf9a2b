"""From an item to the pixels that the model takes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

from ..errors import ArgumentError, ImageError
from ..images import open_sized
from ..preprocessing import DataConfig, cropped, expected, with_channels
from ..resize import resized
from ..wrappers import FeatureExtractWrapper
from .recipe import Recipe
from .shard import Stamp, stamp_of
from .sources import Items


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item as the model takes it, (h, w, chs) of 8 bits, or the reason why not.

    size: (width, height) of its picture. stamp: of its file, taken before it was read.
    """

    item: int
    size: tuple[int, int] = (0, 0)
    pixels: np.ndarray | None = None
    reason: str = ""
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """From items to pixels; plain data, so that processes can have it."""

    items: Items
    prepare: Callable[[Image.Image], Image.Image]
    shorter: int | None = None

    def __call__(self, item: int) -> Decoded:
        """Never raises: whatever is wrong with an image is the reason in what it returns."""
        try:
            stamp = stamp_of(self.items.where(item))
            content = self.items.read(item)
            if not content:
                raise ImageError("the file is empty")
            image, size = open_sized(BytesIO(content), self.shorter)
            return Decoded(item, size, self.pixels(image), stamp=stamp)
        except ImageError as error:
            return Decoded(item, reason=str(error))
        except MemoryError:
            return Decoded(item, reason="not enough memory to decode it")

    def pixels(self, image: Image.Image) -> np.ndarray:
        """What the model takes of an image, (h, w, chs) of 8 bits."""
        pixels = np.asarray(self.prepare(image))
        return pixels[..., None] if pixels.ndim == 2 else pixels


def decoder_for(extractor: FeatureExtractWrapper, items: Items, recipe: Recipe) -> Decoder:
    """Raises ArgumentError for what `cropped` refuses, and for a model of one size where images keep their aspect."""
    config = expected(extractor, recipe.size)
    if not recipe.keep_aspect:
        crop = cropped(extractor, size=recipe.size)
        return Decoder(items, crop, max(config.resized()) if recipe.scaled_decode else None)
    if extractor._inner.fixed_size is not None:
        height, width = extractor._inner.fixed_size
        raise ArgumentError(f"keep_aspect: this model takes images of {height}x{width} pixels alone")
    whole = partial(_whole, config=config, divisor=extractor.size_divisor)
    return Decoder(items, whole, min(config.size) if recipe.scaled_decode else None)


def _whole(image: Image.Image, *, config: DataConfig, divisor: int) -> Image.Image:
    """The image resized at its aspect, as far as sides that are multiples of the divisor allow."""
    shorter = min(config.size)
    height, width = (int(shorter * side / min(image.size)) for side in (image.height, image.width))
    size = [max(divisor, round(side / divisor) * divisor) for side in (width, height)]
    return resized(with_channels(image, len(config.mean)), (size[0], size[1]), config.interpolation)
