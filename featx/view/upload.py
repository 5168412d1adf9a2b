"""Uploaded photographs: not too large, decoded, and gone from the disk."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import ImageError
from ..images import Opening, open_image, stated_size

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest photograph that is taken, and how many of a visitor's may wait on the disk to be decoded.

    nbytes: of its file. pixels: width times height. aspect: its longer side by its shorter one, as a model sees the
    shorter side at a fixed size. waiting: files of a visitor; the oldest are deleted for new ones.
    """

    nbytes: int = 32 * MIB
    pixels: int = 50_000_000
    aspect: float = 4.0
    waiting: int = 8


def take(path: Path, limits: Limits) -> Image.Image:
    """The photograph in RGB, upright, and its file deleted, also if it is refused.

    Raises ImageError if it is no image or larger than the limits.
    """
    try:
        _require_small(path, limits)
        return open_image(path, Opening(max_pixels=limits.pixels))
    finally:
        delete(path)


def delete(path: Path) -> None:
    """Delete an upload, and the folder that was made for it if nothing else is in it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


def _require_small(path: Path, limits: Limits) -> None:
    try:
        nbytes = path.stat().st_size
    except FileNotFoundError as error:  # for which the page took later ones
        raise ImageError("the file is not there any more: drop it again") from error
    if nbytes > limits.nbytes:
        raise ImageError(
            f"the file has {nbytes / MIB:.1f} MiB, and this page takes up to {limits.nbytes / MIB:.0f} MiB: "
            "make the picture smaller first"
        )
    width, height = stated_size(path)  # before any pixel takes memory
    if width * height > limits.pixels:
        raise ImageError(
            f"the picture has {width}x{height} pixels, {width * height / 1e6:.0f} million, and this page takes up to "
            f"{limits.pixels / 1e6:.0f} million: make it smaller first"
        )
    if max(width, height) > limits.aspect * min(width, height):
        raise ImageError(
            f"the picture has {width}x{height} pixels: one side is more than {limits.aspect:g} times the other; "
            "crop it first"
        )
