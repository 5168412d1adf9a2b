"""Conversion of pixels with other depths to 8 bits, including transparent colors stored in these depths."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .errors import ImageError

BITS_PER_SAMPLE, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
WHITE_IS_ZERO, SEPARATE, SIGNED = 0, 2, 2
# Pillow's raw modes of PNG files with fewer than 8 bits of gray, and the factor that scales their values to 8 bits.
FEW_BITS = {"L;2": 85, "L;4": 17}
RGB16, RGB16_LOW_BYTES = "RGB;16B", "RGB;16L"


def require_range(image: ImageFile) -> None:
    """ImageError for pixels without a defined range from black to white, or that Pillow decodes wrongly."""
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range: convert the file to 8 or 16 bits")
    if isinstance(image, TiffImageFile):
        bits, signed = _first(image, BITS_PER_SAMPLE, 1), _first(image, SAMPLE_FORMAT, 1) == SIGNED
        if bits == 32 or signed:
            kind = "signed" if signed else "unsigned"
            raise ImageError(f"{kind} pixels of {bits} bits have no agreed range: convert the file to 8 or 16 bits")
        if bits > 8 and _first(image, PLANES, 1) == SEPARATE and any(tile.codec_name == "raw" for tile in image.tile):
            raise ImageError(f"planes of {bits} bits without compression cannot be decoded: store pixels interleaved")


def rawmode_of(image: ImageFile) -> str:
    """Pillow's raw mode of a PNG file, before it is decoded; empty for other files."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else ""


def eight_bits(image: ImageFile, rawmode: str, reopen: Callable[[], ImageFile]) -> Image.Image:
    """Convert a decoded image to a mode with 8 bits per channel.

    Args:
        image: the image.
        rawmode: its raw mode, from `rawmode_of`.
        reopen: returns the image again, not yet decoded.
    """
    clear = image.info.get("transparency")
    if rawmode in FEW_BITS and isinstance(clear, int):
        image.info["transparency"] = clear * FEW_BITS[rawmode]
    if rawmode == RGB16 and isinstance(clear, tuple):
        return _with_alpha(image, _all_bits(image, reopen()) == np.array(clear, dtype=np.uint16))
    return _gray(image, clear) if image.mode.startswith("I") else image


def _gray(image: ImageFile, clear: object) -> Image.Image:
    """Convert gray of more than 8 bits to 8 bits. Pillow's own conversion would clip it to white."""
    pixels = np.asarray(image).astype(np.int64)
    top, inverted = 2**16 - 1, False
    if isinstance(image, TiffImageFile):
        top = 2 ** _first(image, BITS_PER_SAMPLE, 16) - 1
        inverted = _first(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO
    if pixels.min() < 0 or pixels.max() > top:
        raise ImageError(f"pixels from {pixels.min()} to {pixels.max()} do not fit into 0 to {top}")
    shades = (pixels * 255 + top // 2) // top
    gray = Image.fromarray((255 - shades if inverted else shades).astype(np.uint8))
    return _with_alpha(gray, pixels == clear) if isinstance(clear, int) else gray


def _with_alpha(image: Image.Image, clear: np.ndarray) -> Image.Image:
    """Add an alpha channel. clear: (h, w), or (h, w, chs) with all channels True, where the image is transparent."""
    where = clear if clear.ndim == 2 else clear.all(axis=-1)
    solid = Image.fromarray(np.where(where, 0, 255).astype(np.uint8))
    image.info.pop("transparency", None)
    with_alpha = image.convert(f"{image.mode}A")
    with_alpha.putalpha(solid)
    return with_alpha


def _all_bits(high: Image.Image, low: ImageFile) -> np.ndarray:
    """(h, w, 3) with 16 bits. Pillow decodes the high bytes only; another raw mode makes it decode the low bytes."""
    low.tile = [low.tile[0]._replace(args=RGB16_LOW_BYTES)]
    low.load()
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)


def _first(image: TiffImageFile, tag: int, default: int) -> int:
    value = image.tag_v2.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
