"""Pixels of other depths than 8 bits, and transparent colours that are stated in these depths."""

from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from .errors import ImageError

BITS_PER_SAMPLE, PHOTOMETRIC, PLANES, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
WHITE_IS_ZERO, SEPARATE, SIGNED = 0, 2, 2
# Grays of PNG files of fewer bits, as Pillow names them: by what their values are multiplied to fill 8 bits.
FEW_BITS = {"L;2": 85, "L;4": 17}
COLOURS_OF_16_BITS, THEIR_LOW_BYTES = "RGB;16B", "RGB;16L"


def require_range(image: ImageFile) -> None:
    """Raise ImageError for pixels whose range from black to white is not agreed, or that Pillow would mix up."""
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
    """How the pixels of a PNG file are stored, in Pillow's words, before they are decoded; empty for other files."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else ""


def eight_bits(image: ImageFile, rawmode: str, again: Callable[[], ImageFile]) -> Image.Image:
    """A decoded picture in a mode of 8 bits per channel.

    rawmode: what `rawmode_of` gave. again: gives the picture once more, not yet decoded.
    """
    clear = image.info.get("transparency")
    if rawmode in FEW_BITS and isinstance(clear, int):
        image.info["transparency"] = clear * FEW_BITS[rawmode]
    if rawmode == COLOURS_OF_16_BITS and isinstance(clear, tuple):
        return _with_alpha(image, _all_bits(image, again()) == np.array(clear, dtype=np.uint16))
    return _gray(image, clear) if image.mode.startswith("I") else image


def _gray(image: ImageFile, clear: object) -> Image.Image:
    """Gray of more than 8 bits in 8 bits; Pillow's own conversion would clip it to white."""
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
    """(h, w) or (h, w, chs) of True where the picture is transparent, in all of its channels."""
    where = clear if clear.ndim == 2 else clear.all(axis=-1)
    solid = Image.fromarray(np.where(where, 0, 255).astype(np.uint8))
    image.info.pop("transparency", None)
    with_alpha = image.convert(f"{image.mode}A")
    with_alpha.putalpha(solid)
    return with_alpha


def _all_bits(high: Image.Image, again: ImageFile) -> np.ndarray:
    """(h, w, 3) of 16 bits, of which Pillow decodes the high bytes alone unless it takes the others for these."""
    again.tile = [again.tile[0]._replace(args=THEIR_LOW_BYTES)]
    again.load()
    return np.asarray(high).astype(np.uint16) << 8 | np.asarray(again)


def _first(image: TiffImageFile, tag: int, default: int) -> int:
    value = image.tag_v2.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
