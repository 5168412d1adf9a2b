"""Find image files, and open any of them as the picture a person would see."""

import os
import warnings
from collections.abc import Container, Iterable
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import ArgumentError, ImageError, shortened
from .walk import KNOWN, LINKED, is_sidecar, walked

LARGEST_ASPECT = 100
# Endings that Pillow registers although it decodes no such file.
NOT_DECODED = {".bufr", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".palm", ".pdf"}
# What warnings do is one setting for all threads: only one of them may change it at a time.
WARNINGS = Lock()


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Every file named, and every image file below every folder named, sorted within a folder, each once.

    Raises ArgumentError naming all inputs that do not exist, for a folder that cannot be read, or if there is no image.
    """
    paths = [Path(given) for given in inputs]
    absent = [str(path) for path in paths if not os.path.exists(path)]  # Path.exists raises for a name that is too long
    if absent:
        raise ArgumentError(f"no such file or folder: {', '.join(shortened(absent))}")
    suffixes = image_suffixes()
    found = [
        image
        for path in paths
        for image in ([path / name for name in files_below(path, suffixes)] if path.is_dir() else [path])
    ]
    if not found:
        raise ArgumentError(
            f"no image files in {', '.join(shortened(paths))}; images are known by endings such as .jpg"
        )
    return list(dict.fromkeys(found))


def image_suffixes() -> set[str]:
    """Endings in small letters by which image files are known, with their dots."""
    return set(Image.registered_extensions()) - NOT_DECODED


def files_below(folder: str | Path, endings: Container[str]) -> list[str]:
    """Files below a folder whose names end so, as paths relative to it, sorted by their parts.

    What macOS and Windows leave beside images is none of them. ArgumentError for a folder that cannot be read.
    """
    found = [
        name
        for name in walked(os.fspath(folder), _refuse)
        if os.path.splitext(name)[1].lower() in endings and not is_sidecar(name.replace(os.sep, "/"))
    ]
    return sorted(found, key=lambda path: path.split(os.sep))


def _refuse(folder: str, reason: str) -> None:
    if reason not in (LINKED, KNOWN):
        raise ArgumentError(f"cannot look into {folder}: {reason}")


def open_image(file: Path | BinaryIO) -> Image.Image:
    """The image in RGB, 8 bits, upright, over white where it is transparent, the first frame if it has several.

    Raises ImageError with the reason if the file is no image, is cut short, or cannot be shown in RGB.
    """
    return open_sized(file)[0]


def open_sized(file: Path | BinaryIO, shorter: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
    """The image as `open_image` gives it, and the (width, height) of the whole upright picture in pixels.

    shorter: a JPEG may be decoded at a half, a quarter or an eighth of its size where its sides stay at least twice as
        long as this many pixels; None decodes every file whole.
    """
    try:
        with _open(file) as image:
            whole = image.size
            if shorter is not None:
                image.draft(None, (2 * shorter, 2 * shorter))
            decoded = image.size
            _turn_upright(image)
            return _rgb(image), whole if image.size == decoded else (whole[1], whole[0])
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image in any format that Pillow reads") from error
    except OSError as error:
        named = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else f"{error}"
        raise ImageError(named or type(error).__name__) from error
    except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
        raise ImageError(f"{error}" or type(error).__name__) from error


def _open(file: Path | BinaryIO) -> Image.Image:
    with WARNINGS, warnings.catch_warnings():
        # a large photograph is not an attack; Pillow itself refuses what is twice as large again
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file)


def _turn_upright(image: Image.Image) -> None:
    """Decode it, and turn it in place: a copy of a large photograph takes longer than its decoding."""
    if max(image.size) > LARGEST_ASPECT * min(image.size):
        raise ImageError(f"{image.width}x{image.height} pixels: one side is more than {LARGEST_ASPECT} times the other")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range: convert the file to 8 or 16 bits")
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray; Pillow's own conversion would clip it to white."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError(f"pixels from {pixels.min()} to {pixels.max()} fit neither 8 nor 16 bits")
    return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
