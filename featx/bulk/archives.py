"""Sources of images in tar files, such as WebDataset's, and in zip files."""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import BinaryIO

from ..errors import ImageError
from ..images import image_suffixes
from ..walk import is_sidecar
from .filesystems import fetch_with_retries, is_address, open_binary, open_regular, read_range
from .shard import Stamp, stamp_of
from .sources import LINKS, SIDECAR, Tally, UnreadableError, ending_of

TARS, ZIPS = (".tar",), (".zip",)
TAIL_BYTES = 2**20  # checked behind the last member of a tar; writers pad with up to 10 KiB
# Exceptions of zipfile and zlib for damage, passwords and unsupported compression.
ZIP_PROBLEMS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, LookupError)
TAR_PROBLEMS = (tarfile.TarError, OSError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Tar:
    """Members of a tar, with the offsets and sizes of their bytes.

    Attributes:
        lost: why further members could not be listed, or "".
    """

    path: str
    names: Sequence[str]
    offsets: Sequence[int]
    sizes: Sequence[int]
    lost: str = ""

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        start, size = self.offsets[index], self.sizes[index]
        try:
            read = partial(read_range, self.path, start, start + size)
            content = fetch_with_retries(read) if is_address(self.path) else read()
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if len(content) < size:
            raise ImageError(f"{self.path} ends within it")
        return content


@dataclass(frozen=True, slots=True)
class Zip:
    """Members of a zip; the file is opened in the process that reads them."""

    path: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        name = self.names[index]
        if is_address(self.path):
            return fetch_with_retries(lambda: opened_zip(self.path, None).read(name))
        try:
            return opened_zip(self.path, stamp_of(self.path)).read(name)
        except ZIP_PROBLEMS as error:
            raise ImageError(f"it cannot be unpacked: {error}") from error


@lru_cache(maxsize=8)
def opened_zip(path: str, stamp: Stamp | None) -> zipfile.ZipFile:  # noqa: ARG001
    """The zip at a path or an address, which threads can share; a changed stamp opens it again."""
    if is_address(path):
        return zipfile.ZipFile(open_binary(path))
    open_regular(path).close()  # zipfile would block on a pipe
    return zipfile.ZipFile(path)


def zip_images(path: str, tally: Tally) -> Zip:
    """The image files in a zip, in its order; UnreadableError if it is not a zip or truncated."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as members:
            names = [info.filename for info in members.infolist() if not info.filename.endswith("/")]
    except ZIP_PROBLEMS as error:
        raise UnreadableError(f"{path} cannot be read as a zip: {error}") from error
    return Zip(path, [names[i] for i in _images(path, names, tally)])


def tar_images(path: str, tally: Tally) -> Tar:
    """The image files in an uncompressed tar, in its order; UnreadableError if it is not one.

    For a truncated or damaged tar, the result contains the members before the damage, and `lost` describes it.
    """
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members, problem = _members(tar)
            problem = problem or _problem_at_end(path, file, tar.offset, tally)
    except TAR_PROBLEMS as error:
        raise UnreadableError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    if problem and not members:
        raise UnreadableError(f"{path} cannot be read as an uncompressed tar: {problem}")
    files = [member for member in members if member.isreg()]
    tally.count(LINKS, sum(member.islnk() or member.issym() for member in members))
    images = [files[i] for i in _images(path, [file.name for file in files], tally)]
    lost = f"it is damaged, and what is behind {members[-1].name} is lost: {problem}" if problem else ""
    names, sizes = [image.name for image in images], [image.size for image in images]
    return Tar(path, names, [image.offset_data for image in images], sizes, lost)


def _members(tar: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], str]:
    """The members up to the end, or up to the damage, and a description of the damage or ""."""
    members: list[tarfile.TarInfo] = []
    try:
        for member in tar:
            if member.size < 0:  # tarfile would seek back, and read the same members in an endless loop
                return members, f"{member.name} has a size of {member.size} bytes"
            members.append(member)
    except TAR_PROBLEMS as error:
        if not members:
            raise
        return members, str(error)
    return members, ""


def _problem_at_end(path: str, file: BinaryIO, offset: int, tally: Tally) -> str:
    """A description of damage at the end that tarfile found, or ""; tarfile takes a damaged header for the end."""
    file.seek(offset)
    tail = file.read(TAIL_BYTES)
    if not tail:
        tally.add_remark(path, "has no mark of its end: it may have been cut short between two members")
    elif tail[: tarfile.BLOCKSIZE].strip(b"\0"):
        return "a damaged header"
    elif tail.strip(b"\0"):
        tally.add_remark(path, "holds more behind its end, which is not read: is it several tars in one?")
    return ""


def _images(path: str, names: Sequence[str], tally: Tally) -> list[int]:
    """Indices of the members that are image files; for a repeated name the last one, as when unpacking."""
    last, suffixes = {name: number for number, name in enumerate(names)}, image_suffixes()
    indices: list[int] = []
    for number, name in enumerate(names):
        if is_sidecar(name):
            tally.count(SIDECAR)
        elif ending_of(name) not in suffixes:
            tally.count_file(name)
        elif last[name] == number:
            indices.append(number)
        else:
            tally.add_remark(f"{path}/{name}", "is there several times: the last one counts, as in unpacking")
    return indices
