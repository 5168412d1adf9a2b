"""A photograph as model input, and the region of it that the model sees."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..preprocessing import transform_whole
from ..tracing.size_rules import nearest
from ..wrappers import FeatureExtractWrapper

if TYPE_CHECKING:
    from PIL.Image import Image


def seen_part(image: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> "Image":
    """The region of the image that the model sees: the whole image at its own aspect ratio, where sizes are free.

    For a model with a fixed size or a size divisor, the largest center crop with an aspect ratio that it accepts.

    Args:
        image: the photograph.
        extractor: the model.
        size: pixels of the shorter side of the input; None for the size that the weights expect.

    Raises:
        ArgumentError: the model does not accept `size`.
    """
    sides = _sides(image, extractor, size)
    return image if sides is None else _center_crop(image, sides[0] / sides[1])


def as_seen(image: "Image", extractor: FeatureExtractWrapper, size: int | None = None) -> Tensor:
    """The region of the image that the model sees, as a batch of one (1, 3, H, W), resized and normalized.

    Args:
        image: the photograph.
        extractor: the model.
        size: pixels of the shorter side of the input; None for the size that the weights expect.

    Raises:
        ArgumentError: the model does not accept `size`.
    """
    sides = _sides(image, extractor, size)
    if sides is None:
        return transform_whole(extractor, size=size)(image)[None]
    cropped = _center_crop(image, sides[0] / sides[1])
    resized = cropped.resize(sides, resample=3)  # bicubic; the transform then finds the size it resizes to
    return transform_whole(extractor, size=min(sides))(resized)[None]


def _sides(image: "Image", extractor: FeatureExtractWrapper, size: int | None) -> tuple[int, int] | None:
    """The (width, height) to resize the image to; None if the model accepts any aspect ratio."""
    fixed, divisor, config = extractor.fixed_size, extractor.size_divisor, extractor.data_config
    if fixed is not None:
        if size not in (None, *fixed):
            raise ArgumentError(f"size={size}: this model takes {fixed[0]}x{fixed[1]} pixels alone; leave the size out")
        return fixed[1], fixed[0]
    if divisor == 1 or config is None:
        return None
    side = size or min(config.size)
    shorter, _ = nearest((side, side), divisor)  # rounded first, so that cropping a crop leaves it unchanged
    height, width = nearest(
        (shorter * image.height // min(image.size), shorter * image.width // min(image.size)), divisor
    )
    return width, height


def _center_crop(image: "Image", aspect: float) -> "Image":
    """The largest center crop with the aspect ratio width / height."""
    width = min(image.width, max(1, round(image.height * aspect)))
    height = min(image.height, max(1, round(image.width / aspect)))
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
