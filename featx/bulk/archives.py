"""Images inside tar files, such as WebDataset's: listed once, each read at its place."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os.path import splitext

from ..errors import ArgumentError, ImageError
from ..images import image_suffixes
from .systems import fetched, is_address, open_binary, read_range

TARS = (".tar",)


@dataclass(frozen=True, slots=True)
class Tar:
    """Members of a tar: their names, and where their bytes begin and how many they are."""

    path: str
    names: Sequence[str]
    offsets: Sequence[int]
    sizes: Sequence[int]

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        start, size = self.offsets[index], self.sizes[index]
        try:
            read = partial(read_range, self.path, start, start + size)
            found = fetched(read) if is_address(self.path) else read()
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if len(found) < size:
            raise ImageError(f"{self.path} ends within it")
        return found


def tar_images(path: str) -> Tar:
    """The image files in an uncompressed tar, in its order; ArgumentError if it is none or cut short."""
    suffixes = image_suffixes()
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found = [one for one in tar if one.isfile() and splitext(one.name)[1].lower() in suffixes]
    except (tarfile.TarError, OSError) as error:
        raise ArgumentError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    return Tar(path, [one.name for one in found], [one.offset_data for one in found], [one.size for one in found])
