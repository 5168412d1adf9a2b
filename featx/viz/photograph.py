"""A photograph as the model takes it, and the part of it that the model sees."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..preprocessing import transform_whole
from ..wrappers import FeatureExtractWrapper

if TYPE_CHECKING:
    from PIL.Image import Image


def seen_part(image: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> "Image":
    """The part of the image that the model sees: all of it, at its own aspect.

    Where the model takes one size alone, and no other is asked for, the largest part about the centre of that aspect.
    """
    fixed = extractor._inner.fixed_size
    return image if fixed is None or size is not None else _centre(image, fixed[1] / fixed[0])


def as_seen(part: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> Tensor:
    """A batch of one (1, 3, H, W) of what `seen_part` gave, its shorter side resized to `size` pixels."""
    fixed = extractor._inner.fixed_size
    if fixed is None or size is not None:
        return transform_whole(extractor, size=size)(part)[None]
    height, width = fixed
    resized = part.resize((width, height), resample=3)  # bicubic; resizing once more changes nothing
    return transform_whole(extractor, size=min(fixed))(resized)[None]


def _centre(image: "Image", aspect: float) -> "Image":
    """The largest part of that width / height about the centre."""
    width = min(image.width, max(1, round(image.height * aspect)))
    height = min(image.height, max(1, round(image.width / aspect)))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
