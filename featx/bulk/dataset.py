"""FeatureDataset: what was extracted, as a map-style data set."""

import mmap
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError, OutputError
from .folder import META, require_meta, shards_in
from .shard import Failure, Header, read_header
from .systems import is_address, joined, read_range

MOST_OPEN = 512  # shards mapped at once by a process
READERS = 16  # headers read at once over a network


class Features(NamedTuple):
    """An image's maps by level, (chs, h, w) or (chs,), and the (width, height) of its picture in pixels."""

    id: str
    maps: dict[str, Tensor]
    size: tuple[int, int]


class FeatureDataset(Dataset[Features]):
    """The images that `featx.extract` wrote to a folder, in their order; those that failed are in `failed`.

    folder: a path, or an address that fsspec knows, from which only headers and the rows asked for are fetched.
    levels: names of those to read; None is all.

    Files are opened in the process that reads them, so that it may be given to the workers of a DataLoader.
    Raises OutputError if the folder is none of maps, ArgumentError for levels it does not have; KeyError for an id, and
    IndexError for an index, that is not there.
    """

    def __init__(self, folder: str | Path, levels: list[str] | None = None) -> None:
        self.folder = os.fspath(folder)
        self.meta = require_meta(self.folder)
        known = [level["name"] for level in self.meta["decided"]["levels"]]
        self.levels = known if levels is None else list(levels)
        if unknown := [level for level in self.levels if level not in known]:
            raise ArgumentError(f"levels {unknown} are not stored in {self.folder}: choose among {known}")
        self._names, self._headers = _shards(self.folder, self.meta["fingerprint"])
        self._starts = [0, *accumulate(header.rows for header in self._headers)]
        self._mapped: OrderedDict[int, mmap.mmap] = OrderedDict()
        self._process = os.getpid()
        self._rows: dict[str, int] | None = None

    @property
    def ids(self) -> list[str]:
        """The id of every row."""
        return [id_ for header in self._headers for id_ in header.metadata["ids"]]

    @property
    def failed(self) -> list[Failure]:
        """The images that have no row, and why."""
        return [failure for header in self._headers for failure in header.failed]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Features:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index}: there are {len(self)}")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        header, row = self._headers[shard], index - self._starts[shard]
        width, height = header.metadata["sizes"][row]
        return Features(
            header.metadata["ids"][row],
            {level: self._map(shard, level, row) for level in self.levels},
            (width, height),
        )

    def by_id(self, id_: str) -> Features:
        """The image with this id; KeyError with the reason if it has no row."""
        if self._rows is None:
            self._rows = {id_: row for row, id_ in enumerate(self.ids)}
        if id_ not in self._rows:
            reason = next((one.reason for one in self.failed if one.id == id_), "it was not extracted")
            raise KeyError(f"{id_}: {reason}")
        return self[self._rows[id_]]

    def __getstate__(self) -> Mapping[str, Any]:
        return {**vars(self), "_mapped": OrderedDict(), "_rows": None}

    def _map(self, shard: int, level: str, row: int) -> Tensor:
        dtype, shape, start, end = self._headers[shard].place(level, row)
        content = bytearray(self._bytes(shard, start, end))
        return torch.frombuffer(content, dtype=dtype).reshape(shape)

    def _bytes(self, shard: int, start: int, end: int) -> bytes:
        path = joined(self.folder, self._names[shard])
        return read_range(path, start, end) if is_address(path) else self._file(shard, path)[start:end]

    def _file(self, shard: int, path: str) -> mmap.mmap:
        """The shard's file in memory, mapped by this process: a forked one must not share another's."""
        if self._process != os.getpid():
            self._mapped, self._process = OrderedDict(), os.getpid()
        if shard not in self._mapped:
            with open(path, "rb") as file:
                self._mapped[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._mapped) > MOST_OPEN:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(shard)
        return self._mapped[shard]


def _shards(folder: str, fingerprint: str) -> tuple[list[str], list[Header]]:
    """Names and headers of the shards of the folder's extraction."""
    names = shards_in(folder)
    paths = [joined(folder, name) for name in names]
    if is_address(folder):
        with ThreadPoolExecutor(READERS) as pool:
            read = list(pool.map(read_header, paths))
    else:
        read = [read_header(path) for path in paths]
    for path, header in zip(paths, read, strict=True):
        if header.metadata.get("plan") != fingerprint:
            raise OutputError(f"{path} is of another extraction than the {META} beside it says")
    return names, read
