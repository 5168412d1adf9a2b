"""FeatureDataset: what was extracted, as a map-style data set."""

import os
from bisect import bisect_right
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError, OutputError
from .folder import shards_in
from .growth import current
from .header import Header, number_of, read_header
from .meta import Meta, require_meta
from .shard import Failure, shard_name
from .shard_file import ShardFile
from .systems import is_address, joined

MOST_OPEN = 128  # shards that a process has open at once
READERS = 16  # headers read at once over a network


class Features(NamedTuple):
    """An image's maps by level, (chs, h, w) or (chs,), and the (width, height) of its picture in pixels."""

    id: str
    maps: dict[str, Tensor]
    size: tuple[int, int]


class FeatureDataset(Dataset[Features]):
    """The images that `featx.extract` wrote to a folder, in their order; those that failed are in `failed`.

    Of an image that was extracted again, the latest row counts; those `removed` from the inputs are left out.

    folder: a path, or an address that fsspec knows, from which only headers and the rows asked for are fetched.
    levels: names of those to read; None is all.

    Files are opened in the process that reads them, so that it may be given to the workers of a DataLoader.
    Raises OutputError if the folder is none of maps, or a file of it is damaged, or was overwritten since its header
    was read; ArgumentError for levels it does not have; KeyError for an id, and IndexError for an index, that is not
    there.
    """

    def __init__(self, folder: str | Path, levels: list[str] | None = None) -> None:
        self.folder = os.fspath(folder)
        self._meta = require_meta(self.folder)
        known = [level.name for level in self._meta.plan.levels]
        self.levels = known if levels is None else list(levels)
        if unknown := [level for level in self.levels if level not in known]:
            raise ArgumentError(f"levels {unknown} are not stored in {self.folder}: choose among {known}")
        self._names, self._headers = _shards(self.folder, self._meta)
        self._starts = [0, *accumulate(header.rows for header in self._headers)]
        self._open: dict[int, ShardFile] = {}
        self._rows: dict[str, int] | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """What meta.json says."""
        return self._meta.facts

    @property
    def ids(self) -> list[str]:
        """The id of every row."""
        return [id_ for header in self._headers for id_ in header.ids]

    @property
    def failed(self) -> list[Failure]:
        """The images that have no row, and why."""
        return [failure for header in self._headers for failure in header.failed]

    @property
    def removed(self) -> list[str]:
        """Ids of images that were extracted and are no longer among the inputs."""
        return list(self._meta.removed)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Features:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index}: there are {len(self)}")
        index %= len(self)
        shard = bisect_right(self._starts, index) - 1
        header, row = self._headers[shard], index - self._starts[shard]
        maps = {level: self._map(shard, level, row) for level in self.levels}
        return Features(header.ids[row], maps, header.sizes[row])

    def by_id(self, id_: str) -> Features:
        """The image with this id; KeyError with the reason if it has no row."""
        if self._rows is None:
            self._rows = {id_: row for row, id_ in enumerate(self.ids)}
        if id_ not in self._rows:
            reason = next((one.reason for one in self.failed if one.id == id_), "it was not extracted")
            raise KeyError(f"{id_}: {reason}")
        return self[self._rows[id_]]

    def __getstate__(self) -> Mapping[str, Any]:
        return {**vars(self), "_open": {}, "_rows": None}

    def _map(self, shard: int, level: str, row: int) -> Tensor:
        dtype, shape, start, end = self._headers[shard].place(level, row)
        return torch.frombuffer(self._file(shard).read(start, end), dtype=dtype).reshape(shape)

    def _file(self, shard: int) -> ShardFile:
        """The shard's file, opened by this process; threads that read others at the same time keep theirs open."""
        file = self._open.get(shard)
        if file is None:
            if len(self._open) >= MOST_OPEN:
                self._open = {}
            path = joined(self.folder, self._names[shard])
            self._open[shard] = file = ShardFile(path, self._headers[shard].version)
        return file


def _shards(folder: str, meta: Meta) -> tuple[list[str], list[Header]]:
    """Names and headers of the shards of the folder's extraction, and of no generation that is not finished."""
    plans = {name: meta.generation_of(number_of(name)) for name in shards_in(folder)}
    of = {name: plan for name, plan in plans.items() if plan is not None}
    if meta.has_grown and (
        missing := set(chain.from_iterable(p.numbers for p in meta.generations)) - set(map(number_of, of))
    ):
        raise OutputError(f"{joined(folder, shard_name(min(missing)))} is missing, of an extraction that was complete")

    def header_of(name: str) -> Header:
        return read_header(joined(folder, name), of[name])

    if is_address(folder):
        with ThreadPoolExecutor(READERS) as pool:
            headers = list(pool.map(header_of, of))
    else:
        headers = list(map(header_of, of))
    return list(of), current(headers, meta)
