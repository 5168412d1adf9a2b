"""Find image files, and open any of them as the picture a person would see."""

import os
import warnings
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose

from .colour_profile import ColorManagement, in_srgb
from .errors import ArgumentError, ImageError, shortened
from .picture_formats import identified, image_suffixes
from .picture_metadata import without_metadata
from .pixel_depth import eight_bits, rawmode_of, require_range
from .walk import KNOWN, LINKED, is_sidecar, walked

LARGEST_ASPECT = 100
END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Opening:
    """How image files are opened.

    color_management: "srgb" converts the colours of pictures with an ICC profile to sRGB; "none" leaves the numbers as
        they are stored, as torchvision and timm do.
    allow_truncated: a JPEG that is cut short is the part that is there, and gray below it.
    max_pixels: the most pixels a picture may have; None is Pillow's limit, twice `PIL.Image.MAX_IMAGE_PIXELS`.
    shorter: a JPEG may be decoded at a half, a quarter or an eighth of its size where its sides stay at least twice as
        long as this many pixels; None decodes every file whole.
    profile_later: colours may be left for `in_srgb` to convert when the picture is smaller: that takes several times as
        long as decoding.
    """

    color_management: ColorManagement = "srgb"
    allow_truncated: bool = False
    max_pixels: int | None = None
    shorter: int | None = None
    profile_later: bool = False


class Opened(NamedTuple):
    """An upright picture in RGB of 8 bits, decoded whole or at a fraction of its size.

    size: (width, height) of the whole picture in pixels. box: left, upper, right and lower edge of the picture in
    pixels of `image`; one that was decoded at a fraction may end within a pixel. profile: what `in_srgb` is still to
    convert the colours from.
    """

    image: Image.Image
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    profile: bytes | None = None


class Turn(NamedTuple):
    """How a stored picture is made upright, and whether its right edge comes to lie left or its lower edge on top."""

    method: Transpose
    left: bool
    top: bool


# By the EXIF tag "Orientation".
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


def open_image(file: str | Path | BinaryIO, opening: Opening = Opening()) -> Image.Image:
    """The image in RGB, 8 bits, upright, over white where it is transparent, the first frame if it has several.

    Raises ImageError with the reason if the file is no image, is cut short, or cannot be shown in RGB.
    """
    return open_sized(file, opening).image


def open_sized(file: str | Path | BinaryIO, opening: Opening = Opening()) -> Opened:
    """The image as `open_image` gives it, and the size of the whole upright picture."""
    with _told(), _quiet:
        content = _content(file)
        try:
            return _opened(content, opening)
        except Exception:  # whatever a parser of metadata trips over
            for copy in without_metadata(content):
                with suppress(Exception):
                    return _opened(copy, opening)
            raise


def stated_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) as the file's head states them, before any pixel is decoded. ImageError if it is no image."""
    with _told(), _quiet:
        return identified(_content(file)).size


def _content(file: str | Path | BinaryIO) -> bytes:
    if not isinstance(file, str | Path):
        file.seek(0)
        return file.read()
    with open(file, "rb") as stream:
        return stream.read()


@contextmanager
def _told() -> Iterator[None]:
    """Within the block whatever a decoder raises is an ImageError with the reason."""
    try:
        yield
    except ImageError:
        raise
    except OSError as error:
        named = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else f"{error}"
        raise ImageError(named or type(error).__name__) from error
    except Exception as error:  # a decoder raises whatever its parser trips over in a damaged file
        raise ImageError(f"{error}" or type(error).__name__) from error


def _opened(content: bytes, opening: Opening) -> Opened:
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
    """Raise ImageError for more pixels than this many, or than Pillow's limit if it is None, and for strips."""
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
    """What EXIF or XMP says of the camera's orientation; None if they are damaged or do not say."""
    try:
        return image.getexif().get(Base.Orientation)
    except Exception:  # parsers of metadata raise whatever they trip over, and the pixels are there
        return None


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        over = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(over, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image, orientation: Any, whole: tuple[int, int], edges: tuple[float, float]) -> Opened:
    """The picture turned by its orientation. whole: its size as stored; edges: where it ends in pixels of the image."""
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
    """Within any thread's block, warnings of Pillow are not shown: they name no image, and its pixels are what counts.

    What warnings do is one setting for all threads, so the first one that decodes adds a filter, and the last one
    removes that filter and nothing else.
    """

    def __init__(self) -> None:
        self._lock, self._threads = Lock(), 0
        self._added: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                warnings.filterwarnings("ignore", module=r"PIL\.(?#while featx decodes)")  # equal to no other filter
                self._added = warnings.filters[0]

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                current: Any = warnings.filters
                with suppress(ValueError):  # another thread has put back filters of before
                    current.remove(self._added)


_quiet = _Quiet()
