"""From an item to the pixels that the model takes."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from ..colour_profile import in_srgb
from ..errors import ArgumentError, ImageError
from ..images import Opening, open_sized
from ..preprocessing import cropped, expected, uncropped
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
    """From items to pixels; plain data, so that processes can have it.

    prepare: what `cropped` or `uncropped` of featx.preprocessing gives.
    """

    items: Items
    prepare: Callable[..., Image.Image]
    opening: Opening = Opening()

    def __call__(self, item: int) -> Decoded:
        """Never raises: whatever is wrong with an image is the reason in what it returns."""
        try:
            stamp = stamp_of(self.items.where(item))
            content = self.items.read(item)
            if not content:
                raise ImageError("the file is empty")
            found = open_sized(BytesIO(content), self.opening)
            image = self.prepare(found.image, whole=found.size, box=found.box)
            return Decoded(item, found.size, _pixels(in_srgb(image, found.profile)), stamp=stamp)
        except ImageError as error:
            return Decoded(item, reason=str(error))
        except MemoryError:
            return Decoded(item, reason="not enough memory to decode it")

    def pixels(self, image: Image.Image) -> np.ndarray:
        """What the model takes of an image, (h, w, chs) of 8 bits."""
        return _pixels(self.prepare(image))


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decoder_for(
    extractor: FeatureExtractWrapper, items: Items, recipe: Recipe, max_pixels: int | None = None
) -> Decoder:
    """Raises ArgumentError for what `cropped` refuses, and for a model of one size where images keep their aspect."""
    config = expected(extractor, recipe.size)
    if recipe.keep_aspect and extractor._inner.fixed_size is not None:
        height, width = extractor._inner.fixed_size
        raise ArgumentError(f"keep_aspect: this model takes images of {height}x{width} pixels alone")
    prepared, sides = (uncropped, config.size) if recipe.keep_aspect else (cropped, config.resized())
    needed = min(sides) if recipe.keep_aspect else max(sides)
    # Decoding at a fraction averages pixels, and "nearest" asks for single ones.
    shorter = needed if recipe.scaled_decode and config.interpolation != "nearest" else None
    later = config.crop_mode != "border" and len(config.mean) == 3  # the border is filled, and gray made, in sRGB
    opening = Opening(recipe.color_management, recipe.allow_truncated, max_pixels, shorter, later)
    return Decoder(items, prepared(extractor, size=recipe.size), opening)
