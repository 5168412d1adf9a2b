"""Find image files, and open them upright in RGB with 8 bits per channel."""

import os
import warnings
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

from .color_profile import ColorManagement, in_srgb
from .errors import ArgumentError, ImageError, shortened
from .picture_formats import identified, image_suffixes
from .picture_metadata import without_metadata
from .pixel_depth import eight_bits, rawmode_of, require_range
from .walk import KNOWN, LINKED, is_sidecar, walked

LARGEST_ASPECT = 100
END_OF_JPEG = b"\xff\xd9"
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # modes that PNG stores without conversion
TIFF_MODES = ("I", "F", "CMYK", "LAB")

Picture = str | os.PathLike[str] | np.ndarray | Image.Image


@dataclass(frozen=True, slots=True)
class Opening:
    """Options for opening image files.

    Attributes:
        color_management: "srgb" converts images with an ICC profile to sRGB; "none" keeps the stored values, as
            torchvision and timm do.
        allow_truncated: accept a truncated JPEG; its missing part is gray.
        max_pixels: largest number of pixels; None is Pillow's limit, twice `PIL.Image.MAX_IMAGE_PIXELS`.
        shorter: allow decoding a JPEG at 1/2, 1/4 or 1/8 of its size, as long as both sides have at least twice this
            many pixels; None decodes at full size.
        profile_later: leave the conversion to sRGB to a later call of `in_srgb` on the resized image; at full size it
            takes several times as long as decoding.
    """

    color_management: ColorManagement = "srgb"
    allow_truncated: bool = False
    max_pixels: int | None = None
    shorter: int | None = None
    profile_later: bool = False


class Opened(NamedTuple):
    """An upright RGB image with 8 bits per channel, decoded at full size or at a fraction of it.

    Attributes:
        image: the image.
        size: (width, height) at full size, in pixels.
        box: left, upper, right and lower edge of the picture in pixels of `image`. An image that was decoded at a
            fraction of its size may end within a pixel.
        profile: the ICC profile that `in_srgb` has still to convert from, if any.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    profile: bytes | None = None


class Turn(NamedTuple):
    """The transposition that makes an image upright, and whether it moves the right edge left or the lower edge up."""

    method: Transpose
    left: bool
    top: bool


# By the value of the EXIF tag "Orientation".
TURNS = {
    2: Turn(Transpose.FLIP_LEFT_RIGHT, True, False),
    3: Turn(Transpose.ROTATE_180, True, True),
    4: Turn(Transpose.FLIP_TOP_BOTTOM, False, True),
    5: Turn(Transpose.TRANSPOSE, False, False),
    6: Turn(Transpose.ROTATE_270, True, False),
    7: Turn(Transpose.TRANSVERSE, True, True),
    8: Turn(Transpose.ROTATE_90, False, True),
}
SIDEWAYS = {5, 6, 7, 8}


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """The given files, and all image files below the given folders, sorted within a folder, without duplicates.

    Args:
        inputs: paths of files and folders.

    Raises:
        ArgumentError: inputs do not exist (the message lists all), a folder cannot be read, or there is no image.
    """
    paths = [Path(path) for path in inputs]
    absent = [str(path) for path in paths if not os.path.exists(path)]  # Path.exists raises for a name that is too long
    if absent:
        raise ArgumentError(f"no such file or folder: {', '.join(shortened(absent))}")
    suffixes = image_suffixes()
    images = [
        image
        for path in paths
        for image in ([path / name for name in files_below(path, suffixes)] if path.is_dir() else [path])
    ]
    if not images:
        raise ArgumentError(
            f"no image files in {', '.join(shortened(paths))}; images are known by endings such as .jpg"
        )
    return list(dict.fromkeys(images))


def files_below(folder: str | Path, suffixes: Container[str]) -> list[str]:
    """Files with these suffixes below a folder, as relative paths, sorted by their parts.

    Sidecar files that macOS and Windows create are left out. ArgumentError for a folder that cannot be read.
    """
    names = [
        name
        for name in walked(os.fspath(folder), _refuse)
        if os.path.splitext(name)[1].lower() in suffixes and not is_sidecar(name.replace(os.sep, "/"))
    ]
    return sorted(names, key=lambda path: path.split(os.sep))


def _refuse(folder: str, reason: str) -> None:
    if reason not in (LINKED, KNOWN):
        raise ArgumentError(f"cannot look into {folder}: {reason}")


def open_image(file: str | Path | BinaryIO, opening: Opening = Opening()) -> Image.Image:
    """Open an image upright, in RGB with 8 bits per channel. Transparency is blended with white.

    Args:
        file: a path or a binary file. Of several frames, the first is read.
        opening: options.

    Raises:
        ImageError: the file is not an image, is truncated, or cannot be converted to RGB.
    """
    return open_sized(file, opening).image


def open_sized(file: str | Path | BinaryIO, opening: Opening = Opening()) -> Opened:
    """Open an image like `open_image`, and return its full size, its box and its pending profile, too."""
    with _image_errors(), _quiet:
        content = _content(file)
        try:
            return _decode(content, opening)
        except Exception:  # a parser of damaged metadata may raise anything
            for copy in without_metadata(content):
                with suppress(Exception):
                    return _decode(copy, opening)
            raise


def as_image(picture: Picture) -> Image.Image:
    """A picture in RGB, gray or, if it is a PIL image of floats, in these.

    Args:
        picture: a path, which is opened like `open_image`; an array (H, W) or (H, W, 1, 3 or 4) of uint8; or a PIL
            image of any mode, whose transparency is blended with white, and whose metadata are not read.

    Raises:
        ArgumentError: it is none of these.
        ImageError: the file or the image cannot be read.
    """
    if isinstance(picture, str | os.PathLike):
        return open_image(Path(picture))
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if not isinstance(picture, Image.Image):
        raise ArgumentError(
            f"expected a PIL image, an array (H, W, 3) of uint8 or a path, got {type(picture).__name__}: torchvision's "
            "to_pil_image makes an image of a tensor"
        )
    if picture.mode in ("RGB", "L", "F"):
        return picture
    return open_image(BytesIO(encoded(picture, orientation=False)), Opening(color_management="none"))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ArgumentError(
            f"expected an array (H, W) or (H, W, 1, 3 or 4) of uint8, got {array.dtype} of shape {array.shape}"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def encoded(image: Image.Image, *, orientation: bool = True) -> bytes:
    """A lossless image file of a PIL image, so that it is decoded like any file.

    orientation: keep the EXIF tag, which turns the image when it is opened.
    """
    kind = "TIFF" if image.mode in TIFF_MODES else "PNG"
    kept = image if image.mode in (*PNG_MODES, *TIFF_MODES) else image.convert("RGB")
    file = BytesIO()
    try:
        exif = image.getexif() if orientation else Image.Exif()
        kept.save(file, kind, exif=exif, **({"compress_level": 0} if kind == "PNG" else {}))
    except Exception as error:  # PIL images decode lazily, and decoders raise exceptions of any class
        raise ImageError(f"{error}" or type(error).__name__) from error
    return file.getvalue()


def stated_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) from the file's header, without decoding pixels. ImageError if the file is not an image."""
    with _image_errors(), _quiet:
        return identified(_content(file)).size


def _content(file: str | Path | BinaryIO) -> bytes:
    if not isinstance(file, str | Path):
        file.seek(0)
        return file.read()
    with open(file, "rb") as stream:
        return stream.read()


@contextmanager
def _image_errors() -> Iterator[None]:
    """Convert any exception of a decoder to an ImageError with its message."""
    try:
        yield
    except ImageError:
        raise
    except OSError as error:
        message = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else f"{error}"
        raise ImageError(message or type(error).__name__) from error
    except Exception as error:  # a decoder of a damaged file may raise anything
        raise ImageError(f"{error}" or type(error).__name__) from error


def _decode(content: bytes, opening: Opening) -> Opened:
    with identified(content) as image:
        if opening.allow_truncated and image.format in ("JPEG", "MPO"):
            content += END_OF_JPEG
            image = identified(content)
        require_size(image.size, opening.max_pixels)
        require_range(image)
        whole, rawmode = image.size, rawmode_of(image)
        drafted = None if opening.shorter is None else image.draft(None, (2 * opening.shorter, 2 * opening.shorter))
        right, lower = image.size if drafted is None else drafted[1][2:]
        image.load()
        orientation = _orientation(image)
        profile = image.info.get("icc_profile") if opening.color_management == "srgb" else None
        shown = eight_bits(image, rawmode, lambda: identified(content))
        if not opening.profile_later or shown.mode != "RGB" or shown.has_transparency_data:
            shown, profile = in_srgb(shown, profile), None
        return _upright(_rgb(shown), orientation, whole, (right, lower))._replace(profile=profile)


def require_size(size: tuple[int, int], most: int | None) -> None:
    """ImageError for more than `most` pixels (None: Pillow's limit), and for an aspect ratio above LARGEST_ASPECT."""
    width, height = size
    if most is None and Image.MAX_IMAGE_PIXELS is not None:
        most = 2 * Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ImageError(
            f"{width}x{height} pixels are more than {most}, which may be a decompression bomb: choose a larger "
            "max_pixels if it is none"
        )
    if max(size) > LARGEST_ASPECT * min(size):
        raise ImageError(f"{width}x{height} pixels: one side is more than {LARGEST_ASPECT} times the other")


def _orientation(image: Image.Image) -> Any:
    """The orientation tag from EXIF or XMP; None if it is missing or damaged."""
    try:
        return image.getexif().get(Base.Orientation)
    except Exception:  # parsers of metadata may raise anything, and the pixels are intact
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image, orientation: Any, whole: tuple[int, int], edges: tuple[float, float]) -> Opened:
    """Make an image upright. whole: its stored size; edges: right and lower edge of the picture in its pixels."""
    width, height = edges
    if (turn := TURNS.get(orientation)) is None:
        return Opened(image, whole, (0, 0, width, height))
    image = image.transpose(turn.method)
    if orientation in SIDEWAYS:
        whole, width, height = (whole[1], whole[0]), height, width
    left = image.width - width if turn.left else 0
    top = image.height - height if turn.top else 0
    return Opened(image, whole, (left, top, left + width, top + height))


class _Quiet:
    """Context manager that suppresses warnings of Pillow, which do not name the image. Thread-safe.

    Warning filters are global to the process: the first thread that decodes adds a filter, and the last one removes
    that filter only.
    """

    def __init__(self) -> None:
        self._lock, self._threads = Lock(), 0
        self._added: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                warnings.filterwarnings(
                    "ignore", module=r"PIL\.(?#while featx decodes)"
                )  # differs from any other filter
                self._added = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                current: Any = warnings.filters
                with suppress(ValueError):  # another thread may have restored earlier filters
                    current.remove(self._added)


_quiet = _Quiet()
