"""Shards: safetensors files of maps, written atomically, with headers that describe their content completely.

A level whose rows have one shape is one tensor (rows, ...) with the name of the level; otherwise row r of the level is
a tensor named "level/r". The metadata entry "featx" is JSON: `shard`, the number; `plan`, the fingerprint of the plan;
`levels`; for every row `ids`, `sources`, `sizes` (width, height) and `stamps` (bytes and modification time, or null);
`errors`, a list of id, source and reason for every failed image; `digest`, the SHA-256 of these entries, of the names
and shapes of the tensors and of their bytes, which files of earlier versions lack.
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

KEY = "featx"  # a single entry, because safetensors does not keep the order of entries
LONGEST_HEADER = 32 * 2**20  # bytes; about a million for 4,096 images
LONGEST_ENTRY = 160  # bytes of a tensor's entry, besides its name
Stamp = tuple[int, int]  # size of a file in bytes, and its modification time in nanoseconds


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be extracted, and the reason."""

    id: str
    source: str
    reason: str


@dataclass(slots=True)
class Shard:
    """The rows of a shard in the order of their items, and its failures.

    Attributes:
        number: of the shard.
        plan: fingerprint of the plan.
        levels: names.
        ids, sources, sizes, stamps: of every row.
        maps: for every level, the (chs, h, w) or (chs,) tensors of all rows.
        failed: images without a row.
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
            "errors": [[failure.id, failure.source, failure.reason] for failure in self.failed],
        }
        names = sorted(tensors)  # the order in which safetensors writes tensors of one dtype
        digest = digest_of(facts, {name: tensors[name].shape for name in names})
        for name in names:
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
        return {KEY: json.dumps({**facts, "digest": digest.hexdigest()})}


def digest_of(facts: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> "hashlib._Hash":
    """SHA-256 of a header without its digest; the caller adds the bytes after the header."""
    return hashlib.sha256(json.dumps([facts, {name: list(shapes[name]) for name in sorted(shapes)}]).encode())


def stamp_of(source: str) -> Stamp | None:
    """The stamp of a local file, or of the archive or table that contains the image; None for anything else."""
    while True:
        try:
            status = os.stat(source)
        except NotADirectoryError:
            source = os.path.dirname(source)
        except (OSError, ValueError):
            return None
        else:
            return (status.st_size, status.st_mtime_ns) if S_ISREG(status.st_mode) else None


def shard_name(number: int) -> str:
    return f"maps-{number:06d}.safetensors"


def write_shard(folder: Path, shard: Shard) -> int:
    """Write a shard atomically, and return the bytes of the file. Empties `shard.maps`. OutputError if it fails."""
    tensors: dict[str, Tensor] = {}
    while shard.maps:  # level by level, to free the rows that were stacked
        level, rows = shard.levels[-len(shard.maps)], shard.maps.pop(0)
        if len({row.shape for row in rows}) == 1:
            tensors[level] = torch.stack(rows)
        else:
            tensors |= {f"{level}/{number}": row.clone() for number, row in enumerate(rows)}
    metadata = shard.metadata(tensors)
    text = json.dumps({**metadata, **dict.fromkeys(tensors, "." * LONGEST_ENTRY)})
    if len(text) > LONGEST_HEADER or values_in(text) + 9 * len(tensors) > MOST_VALUES:
        raise OutputError(f"{folder / shard.name} would have too large a header: choose a smaller rows_per_shard")
    write_whole(folder, shard.name, lambda part: save_file(tensors, part, metadata))
    return (folder / shard.name).stat().st_size


def write_whole(folder: Path, name: str, save: Callable[[Path], object]) -> None:
    """Write a file atomically, and flush it to disk.

    Args:
        folder: of the file.
        name: of the file.
        save: called with the path to write to.

    Raises:
        OutputError: it fails; no partial file is left.
    """
    with whole_file(folder / name) as part:
        try:
            save(part)
        except SafetensorError as error:
            raise OSError(str(error)) from error


class ShardFile:
    """A thread-safe reader of a shard at a path or an address.

    It does not use memory mapping, because access to a mapped file that was truncated kills the process. At an address,
    it detects only truncated files as changed.

    Args:
        path: or address.
        version: of the file that was read before.

    Raises:
        OSError: the file cannot be opened.
        OutputError: the file was replaced, overwritten or removed.
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
        """The current version of a local file; None for an address."""
        return None if self._file is None else version_of(self._file.fileno())

    @property
    def nbytes(self) -> int:
        return size_of(self._path) if self._version is None else self._version.nbytes

    def read(self, start: int, end: int) -> bytearray:
        """The bytes from `start` to `end` (exclusive), all of one version of the file."""
        try:
            content = bytearray(end - start)
        except MemoryError:
            raise OutputError(f"{self._path}: there is no memory for {end - start} bytes of it") from None
        remote = read_range(self._path, start, end) if self._file is None else None
        count = self._fill(memoryview(content), start) if remote is None else len(remote)
        if remote is not None and count == end - start:
            content[:] = remote
        self._require_same()
        if count != end - start:
            raise self._changed()
        return content

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    __del__ = close

    def _fill(self, content: memoryview, start: int) -> int:
        """Read into memory, in parts because one call reads at most 2 GiB; return the number of bytes."""
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
