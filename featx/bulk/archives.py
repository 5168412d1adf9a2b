"""Images inside tar files, such as WebDataset's, and zip files: listed once, each read at its place."""

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
from .filesystems import fetched, is_address, open_binary, open_regular, read_range
from .shard import Stamp, stamp_of
from .sources import LINKS, SIDECAR, Tally, UnreadableError, ending_of

TARS, ZIPS = (".tar",), (".zip",)
TAIL_BYTES = 2**20  # looked at behind the last member of a tar; writers fill up to 10 KiB
# What zipfile and zlib raise for damage, passwords, and ways of packing that they do not know.
ZIP_PROBLEMS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, LookupError)
TAR_PROBLEMS = (tarfile.TarError, OSError, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Tar:
    """Members of a tar: their names, and where their bytes begin and how many they are.

    lost: why members behind these could not be listed, or nothing.
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
            found = fetched(read) if is_address(self.path) else read()
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error
        if len(found) < size:
            raise ImageError(f"{self.path} ends within it")
        return found


@dataclass(frozen=True, slots=True)
class Zip:
    """Members of a zip by their names; the file is opened where they are read."""

    path: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        name = self.names[index]
        if is_address(self.path):
            return fetched(lambda: opened_zip(self.path, None).read(name))
        try:
            return opened_zip(self.path, stamp_of(self.path)).read(name)
        except ZIP_PROBLEMS as error:
            raise ImageError(f"it cannot be unpacked: {error}") from error


@lru_cache(maxsize=8)
def opened_zip(path: str, stamp: Stamp | None) -> zipfile.ZipFile:  # noqa: ARG001
    """The zip at a path or an address, which threads may share; opened anew once its file has another stamp."""
    if is_address(path):
        return zipfile.ZipFile(open_binary(path))
    open_regular(path).close()  # zipfile would wait for whoever writes to a pipe
    return zipfile.ZipFile(path)


def zip_images(path: str, tally: Tally) -> Zip:
    """The image files in a zip, in its order. UnreadableError if it is none or cut short."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as members:
            names = [one.filename for one in members.infolist() if not one.filename.endswith("/")]
    except ZIP_PROBLEMS as error:
        raise UnreadableError(f"{path} cannot be read as a zip: {error}") from error
    return Zip(path, [names[i] for i in _images(path, names, tally)])


def tar_images(path: str, tally: Tally) -> Tar:
    """The image files in an uncompressed tar, in its order. UnreadableError if it is none.

    Of a tar that is cut short or damaged it has the members before that place, and says so.
    """
    try:
        with open_binary(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members, problem = _members(tar)
            problem = problem or _problem_at_end(path, file, tar.offset, tally)
    except TAR_PROBLEMS as error:
        raise UnreadableError(f"{path} cannot be read as an uncompressed tar: {error}") from error
    if problem and not members:
        raise UnreadableError(f"{path} cannot be read as an uncompressed tar: {problem}")
    files = [one for one in members if one.isreg()]
    tally.count(LINKS, sum(one.islnk() or one.issym() for one in members))
    found = [files[i] for i in _images(path, [one.name for one in files], tally)]
    lost = f"it is damaged, and what is behind {members[-1].name} is lost: {problem}" if problem else ""
    return Tar(path, [one.name for one in found], [one.offset_data for one in found], [one.size for one in found], lost)


def _members(tar: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], str]:
    """The members up to the end, or up to where the tar is damaged, and what is wrong there."""
    members: list[tarfile.TarInfo] = []
    try:
        for member in tar:
            if member.size < 0:  # tarfile would go back, and read the same members for ever
                return members, f"{member.name} has a size of {member.size} bytes"
            members.append(member)
    except TAR_PROBLEMS as error:
        if not members:
            raise
        return members, str(error)
    return members, ""


def _problem_at_end(path: str, file: BinaryIO, offset: int, tally: Tally) -> str:
    """What is wrong where tarfile sees an end; it takes a damaged header for one."""
    file.seek(offset)
    tail = file.read(TAIL_BYTES)
    if not tail:
        tally.tell(path, "has no mark of its end: it may have been cut short between two members")
    elif tail[: tarfile.BLOCKSIZE].strip(b"\0"):
        return "a damaged header"
    elif tail.strip(b"\0"):
        tally.tell(path, "holds more behind its end, which is not read: is it several tars in one?")
    return ""


def _images(path: str, names: Sequence[str], tally: Tally) -> list[int]:
    """Which members are image files; of several with one name the last, as in unpacking."""
    last, suffixes = {name: number for number, name in enumerate(names)}, image_suffixes()
    found: list[int] = []
    for number, name in enumerate(names):
        if is_sidecar(name):
            tally.count(SIDECAR)
        elif ending_of(name) not in suffixes:
            tally.count_file(name)
        elif last[name] == number:
            found.append(number)
        else:
            tally.tell(f"{path}/{name}", "is there several times: the last one counts, as in unpacking")
    return found
