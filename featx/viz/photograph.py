"""A photograph as the model takes it, and the part of it that the model sees."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..preprocessing import transform_whole
from ..tracing.size_rules import nearest
from ..wrappers import FeatureExtractWrapper

if TYPE_CHECKING:
    from PIL.Image import Image


def seen_part(image: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> "Image":
    """The part of the image that the model sees: all of it, at its own aspect.

    Where the model does not take every size, the largest part about the centre that has the aspect of one it takes.
    Raises ArgumentError for a `size` that the model does not take.
    """
    sides = _sides(image, extractor, size)
    return image if sides is None else _centre(image, sides[0] / sides[1])


def as_seen(image: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> Tensor:
    """A batch of one (1, 3, H, W): the part of the image that the model sees, as it takes it.

    Its shorter side is resized to `size` pixels, by default to those that the weights expect. ArgumentError for a
    `size` that the model does not take.
    """
    sides = _sides(image, extractor, size)
    if sides is None:
        return transform_whole(extractor, size=size)(image)[None]
    part = _centre(image, sides[0] / sides[1])
    resized = part.resize(sides, resample=3)  # bicubic; resizing once more changes nothing
    return transform_whole(extractor, size=min(sides))(resized)[None]


def _sides(image: "Image", extractor: FeatureExtractWrapper, size: int | None) -> tuple[int, int] | None:
    """The (width, height) to resize the image to; None if it can keep its aspect, whatever that is."""
    fixed, divisor, config = extractor.fixed_size, extractor.size_divisor, extractor.data_config
    if fixed is not None:
        if size not in (None, *fixed):
            raise ArgumentError(f"size={size}: this model takes {fixed[0]}x{fixed[1]} pixels alone; leave the size out")
        return fixed[1], fixed[0]
    if divisor == 1 or config is None:
        return None
    side = size or min(config.size)
    shorter, _ = nearest((side, side), divisor)  # so that the part of the part is the part
    height, width = nearest(
        (shorter * image.height // min(image.size), shorter * image.width // min(image.size)), divisor
    )
    return width, height


def _centre(image: "Image", aspect: float) -> "Image":
    """The largest part of that width / height about the centre."""
    width = min(image.width, max(1, round(image.height * aspect)))
    height = min(image.height, max(1, round(image.width / aspect)))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
