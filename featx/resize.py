"""Resizing and cropping of PIL images, with the same pixels as torchvision's transforms."""

from math import gcd
from typing import TYPE_CHECKING, Literal, get_args

from .errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image

# Edges of a box may be at multiples of 1 / PARTS pixel: Pillow stores them as floats with 24 bits.
PARTS = 2**8
TALL = 100  # rows per column from which Pillow chooses the order of passes by the number of requested rows

# Left, upper, right and lower edge of the region of an image to resize, in its pixels.
Box = tuple[float, float, float, float]
# Start of a center crop that lies between two pixels: the nearest one (ties to even), or the next one down.
Rounding = Literal["nearest", "down"]
ROUNDINGS = get_args(Rounding)


def resized(image: "Image.Image", size: tuple[int, int], interpolation: str, box: Box | None = None) -> "Image.Image":
    """Resize the image, or a box of it, to (width, height) pixels. An image of that size is returned itself.

    Raises:
        ArgumentError: the interpolation is unknown.
    """
    whole = box is None or box == (0, 0, *image.size)
    return image if whole and image.size == size else image.resize(size, resampling(interpolation), box)


def resized_center(
    image: "Image.Image",
    size: tuple[int, int],
    crop: tuple[int, int],
    interpolation: str,
    rounding: Rounding = "nearest",
    fill: tuple[int, ...] | None = None,
    box: Box | None = None,
) -> "Image.Image":
    """Resize an image to `size`, and crop its center. Cropped columns and rows are not computed if that is exact.

    Args:
        image: the image.
        size: (width, height) in pixels to resize to.
        crop: (width, height) in pixels of the center crop.
        interpolation: name of a filter.
        rounding: start of a crop that lies between two pixels.
        fill: color of the border if `crop` is larger than `size`; None for black.
        box: the region of the image to resize, with edges at multiples of 1 / PARTS.

    Raises:
        ArgumentError: the interpolation is unknown.
    """
    left, top = (_start(whole, part, rounding) for whole, part in zip(size, crop, strict=True))
    # "nearest" accumulates steps from the first pixel, and Pillow may resize rows of tall images before columns.
    if interpolation == "nearest" or image.height > TALL * image.width:
        image, box = resized(image, size, interpolation, box), None
    edges = (0, 0, *image.size) if box is None else box
    if image.size != size or edges != (0, 0, *size):
        width, height = edges[2] - edges[0], edges[3] - edges[1]
        first, last = _span(width, size[0], left, crop[0])
        upper, lower = _span(height, size[1], top, crop[1])
        across, down = width / size[0], height / size[1]
        region = edges[0] + first * across, edges[1] + upper * down, edges[0] + last * across, edges[1] + lower * down
        image = image.resize((last - first, lower - upper), resampling(interpolation), region)
        left, top = left - first, top - upper
    if fill is None:
        return image.crop((left, top, left + crop[0], top + crop[1]))
    from PIL import Image

    filled = Image.new(image.mode, crop, fill)
    filled.paste(image, (-left, -top))
    return filled


def resampling(interpolation: str) -> "Image.Resampling":
    """Pillow's filter of that name. ArgumentError if there is none."""
    from PIL import Image

    try:
        return Image.Resampling[interpolation.upper()]
    except KeyError:
        names = ", ".join(filter_.name.lower() for filter_ in Image.Resampling)
        raise ArgumentError(f"interpolation={interpolation!r}: choose one of {names}") from None


def _start(whole: int, part: int, rounding: Rounding) -> int:
    """Start of the center crop; negative if the crop is larger than the image."""
    if part > whole:
        return -((part - whole) // 2)
    return (whole - part) // 2 if rounding == "down" else round((whole - part) / 2)


def _span(pixels: float, whole: int, start: int, part: int) -> tuple[int, int]:
    """The shortest span of `whole` that contains the center crop and whose ends are exact in the image's pixels.

    Otherwise the filter's weights would differ from those of resizing the whole image.
    """
    step = whole // gcd(int(pixels * PARTS), whole)
    first, last = max(0, start), min(whole, start + part)
    return first - first % step, min(whole, -(-last // step) * step)
