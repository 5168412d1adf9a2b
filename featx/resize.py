"""Resizing and cropping of PIL images, to the pixels that torchvision's transforms make of them."""

from math import gcd
from typing import TYPE_CHECKING, Literal, get_args

from .errors import ArgumentError

if TYPE_CHECKING:
    from PIL import Image

# Parts of a pixel that edges of a box may lie at: Pillow takes them as floats of 24 bits.
PARTS = 2**8
TALL = 100  # rows per column from which on Pillow decides on the order by how many rows are asked for

# Left, upper, right and lower edge of what of an image is resized, in its pixels.
Box = tuple[float, float, float, float]
# Where a centre starts that lies between two pixels: at the nearest one, the even one of two, or the next one down.
Rounding = Literal["nearest", "down"]
ROUNDINGS = get_args(Rounding)


def resized(image: "Image.Image", size: tuple[int, int], interpolation: str, box: Box | None = None) -> "Image.Image":
    """The image, or the box of it, at (width, height) pixels; itself if it has these.

    Raises ArgumentError for an unknown interpolation.
    """
    whole = box is None or box == (0, 0, *image.size)
    return image if whole and image.size == size else image.resize(size, resampling(interpolation), box)


def resized_centre(
    image: "Image.Image",
    size: tuple[int, int],
    crop: tuple[int, int],
    interpolation: str,
    rounding: Rounding = "nearest",
    fill: tuple[int, ...] | None = None,
    box: Box | None = None,
) -> "Image.Image":
    """The centre, (width, height) pixels of `crop`, of the image resized to `size`; where that is smaller, `fill`.

    Columns and rows that would be cropped are not computed, as far as that changes no pixel of the others. No `fill`
    is black. A `box` is the part of the image that is resized; its edges are at multiples of 1 / PARTS.
    """
    left, top = (_start(whole, part, rounding) for whole, part in zip(size, crop, strict=True))
    # "nearest" adds up steps from the first pixel on, and of tall images Pillow may resize rows before columns.
    if interpolation == "nearest" or image.height > TALL * image.width:
        image, box = resized(image, size, interpolation, box), None
    edges = (0, 0, *image.size) if box is None else box
    if image.size != size or edges != (0, 0, *size):
        width, height = edges[2] - edges[0], edges[3] - edges[1]
        first, last = _span(width, size[0], left, crop[0])
        upper, lower = _span(height, size[1], top, crop[1])
        across, down = width / size[0], height / size[1]
        part = edges[0] + first * across, edges[1] + upper * down, edges[0] + last * across, edges[1] + lower * down
        image = image.resize((last - first, lower - upper), resampling(interpolation), part)
        left, top = left - first, top - upper
    if fill is None:
        return image.crop((left, top, left + crop[0], top + crop[1]))
    from PIL import Image

    filled = Image.new(image.mode, crop, fill)
    filled.paste(image, (-left, -top))
    return filled


def resampling(interpolation: str) -> "Image.Resampling":
    """Pillow's filter of that name; ArgumentError if there is none."""
    from PIL import Image

    try:
        return Image.Resampling[interpolation.upper()]
    except KeyError:
        names = ", ".join(filter_.name.lower() for filter_ in Image.Resampling)
        raise ArgumentError(f"interpolation={interpolation!r}: choose one of {names}") from None


def _start(whole: int, part: int, rounding: Rounding) -> int:
    """Where the centre starts; below zero if it is larger than the whole."""
    if part > whole:
        return -((part - whole) // 2)
    return (whole - part) // 2 if rounding == "down" else round((whole - part) / 2)


def _span(pixels: float, whole: int, start: int, part: int) -> tuple[int, int]:
    """The shortest span of `whole` that holds the centre and whose ends are exact in the image's own pixels.

    Only then do the filter's weights come out the same as those of the whole.
    """
    step = whole // gcd(int(pixels * PARTS), whole)
    first, last = max(0, start), min(whole, start + part)
    return first - first % step, min(whole, -(-last // step) * step)
