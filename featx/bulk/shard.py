"""One file of maps: written whole or not at all, its header saying everything about what is in it.

A safetensors file. A level whose rows have one shape is one tensor (rows, ...) named after it; otherwise row r of it is
a tensor named "level/r". The entry "featx" of its metadata is JSON: `shard`, its number; `plan`, the fingerprint of
what it belongs to; `levels`; by row `ids`, `sources`, `sizes` (width, height) and `stamps` (bytes and time of last
change, or null); `errors`, by image that could not be extracted a list of id, source and reason; `digest`, the SHA-256
of all of that, of names and shapes of the tensors and of their bytes, which files of earlier versions lack.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError
from ..file_version import Version, version_of
from ..json_checks import MOST_VALUES, values_in
from ..whole_files import whole_file
from .filesystems import is_address, open_regular, read_range, size_of

KEY = "featx"  # one entry, because safetensors writes several in any order
LONGEST_HEADER = 32 * 2**20  # bytes; that of 4,096 images has about a million
LONGEST_ENTRY = 160  # bytes of one tensor's, beside its name
Stamp = tuple[int, int]  # bytes of a file, and the time of its last change in nanoseconds


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that has no row, and why."""

    id: str
    source: str
    reason: str


@dataclass(slots=True)
class Shard:
    """Rows in the order of their items, each with its maps; and what failed among the shard's items.

    maps: by level, then by row, (chs, h, w) or (chs,).
    """

    number: int
    plan: str
    levels: Sequence[str]
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    stamps: list[Stamp | None] = field(default_factory=list)
    maps: list[list[Tensor]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    @property
    def name(self) -> str:
        return shard_name(self.number)

    def metadata(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        facts: dict[str, Any] = {
            "shard": self.number,
            "plan": self.plan,
            "levels": list(self.levels),
            "ids": self.ids,
            "sources": self.sources,
            "sizes": self.sizes,
            "stamps": self.stamps,
            "errors": [[one.id, one.source, one.reason] for one in self.failed],
        }
        names = sorted(tensors)  # the order that safetensors writes tensors of one dtype in
        digest = digest_of(facts, {name: tensors[name].shape for name in names})
        for name in names:
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
        return {KEY: json.dumps({**facts, "digest": digest.hexdigest()})}


def digest_of(facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> "hashlib._Hash":
    """SHA-256 of what a header says but its digest, to which the bytes after the header are added."""
    return hashlib.sha256(json.dumps([facts, {name: list(shapes[name]) for name in sorted(shapes)}]).encode())


def stamp_of(source: str) -> Stamp | None:
    """What tells whether a file of this machine, or the one that an image is packed in, is the same later.

    None for what is no such file.
    """
    while True:
        try:
            told = os.stat(source)
        except NotADirectoryError:
            source = os.path.dirname(source)
        except (OSError, ValueError):
            return None
        else:
            return (told.st_size, told.st_mtime_ns) if S_ISREG(told.st_mode) else None


def shard_name(number: int) -> str:
    return f"maps-{number:06d}.safetensors"


def write_shard(folder: Path, shard: Shard) -> int:
    """Write the file, replacing one of that name at once; its bytes. The maps are used up. OutputError if it fails."""
    tensors: dict[str, Tensor] = {}
    while shard.maps:  # level by level, so that what is stacked is freed
        level, rows = shard.levels[-len(shard.maps)], shard.maps.pop(0)
        if len({row.shape for row in rows}) == 1:
            tensors[level] = torch.stack(rows)
        else:
            tensors |= {f"{level}/{number}": row.clone() for number, row in enumerate(rows)}
    metadata = shard.metadata(tensors)
    text = json.dumps({**metadata, **dict.fromkeys(tensors, "." * LONGEST_ENTRY)})
    if len(text) > LONGEST_HEADER or values_in(text) + 9 * len(tensors) > MOST_VALUES:
        raise OutputError(f"{folder / shard.name} would say more than one file may: choose a smaller rows_per_shard")
    write_whole(folder, shard.name, lambda part: save_file(tensors, part, metadata))
    return (folder / shard.name).stat().st_size


def write_whole(folder: Path, name: str, save: Callable[[Path], object]) -> None:
    """Have `save` write a file that appears under its name, and on the disk, whole or not at all.

    save: called with the path to write to. Raises OutputError if it fails, and leaves nothing then.
    """
    with whole_file(folder / name) as part:
        try:
            save(part)
        except SafetensorError as error:
            raise OSError(str(error)) from error


class ShardFile:
    """Reads a file at a path or an address, from any number of threads.

    version: of the file that was read before. The bytes are read and not mapped, since memory that is mapped from a
    file ends the process when the file is cut short. OSError if it cannot be opened; OutputError if it is another file
    now, was overwritten or is gone. At an address nothing tells that but an end that is missing.
    """

    _file: BinaryIO | None = None

    def __init__(self, path: str, version: Version | None = None) -> None:
        self._path = path
        if not is_address(path):
            try:
                self._file = open_regular(path)
            except OSError as error:
                if version is None:
                    raise
                raise self._changed() from error
        self._version = version or self.version
        self._require_same()

    @property
    def version(self) -> Version | None:
        """Of a file of this machine as it is now."""
        return None if self._file is None else version_of(self._file.fileno())

    @property
    def nbytes(self) -> int:
        return size_of(self._path) if self._version is None else self._version.nbytes

    def read(self, start: int, end: int) -> bytearray:
        """The bytes from start up to end, all of one version of the file."""
        try:
            content = bytearray(end - start)
        except MemoryError:
            raise OutputError(f"{self._path}: there is no memory for {end - start} bytes of it") from None
        read = read_range(self._path, start, end) if self._file is None else None
        count = self._fill(memoryview(content), start) if read is None else len(read)
        if read is not None and count == end - start:
            content[:] = read
        self._require_same()
        if count != end - start:
            raise self._changed()
        return content

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    __del__ = close

    def _fill(self, content: memoryview, start: int) -> int:
        """Read into the memory, which a system does in parts of up to 2 GiB; how many bytes there were."""
        assert self._file is not None
        if not hasattr(os, "preadv"):
            with open_regular(self._path) as file:
                file.seek(start)
                return file.readinto(content)  # pyright: ignore[reportAttributeAccessIssue]
        count = 0
        while count < len(content) and (more := os.preadv(self._file.fileno(), [content[count:]], start + count)):
            count += more
        return count

    def _require_same(self) -> None:
        if self.version != self._version:
            raise self._changed()

    def _changed(self) -> OutputError:
        return OutputError(
            f"{self._path} was overwritten, replaced or removed while it was in use: open the folder again; featx "
            "extract replaces files of maps whole, and nothing else should write to them"
        )
