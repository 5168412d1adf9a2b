"""Sources of images that trouble a decoder; what processes import for them is this and nothing of the tests."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Slow:
    """Files of a folder, of which some take minutes to read."""

    folder: Path
    names: Sequence[str]
    slow: tuple[int, ...]

    def where(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> bytes:
        if index in self.slow:
            time.sleep(600)
        return (self.folder / self.names[index]).read_bytes()


@dataclass(frozen=True)
class Raising:
    """An image whose source has a bug."""

    names: Sequence[str] = ("a",)

    def where(self, index: int) -> str:
        return "a"

    def read(self, index: int) -> bytes:
        raise ZeroDivisionError("a bug")


@dataclass(frozen=True)
class Local:
    """An image that cannot be sent to a process."""

    read: object = lambda _: b""
    names: Sequence[str] = ("a",)

    def where(self, index: int) -> str:
        return "a"


def same(image: Image.Image, **_: object) -> Image.Image:
    return image
