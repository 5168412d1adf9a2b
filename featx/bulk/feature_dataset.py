"""FeatureDataset: what was extracted, as a map-style data set."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ArgumentError, OutputError
from .arrays import to_numpy, to_pandas
from .filesystems import is_address, joined
from .growth import current
from .header import Header, number_of, read_header
from .meta import Meta, require_meta
from .output_folder import shards_in
from .search import Duplicate, Metric, Neighbour, duplicates, nearest
from .shard import Failure, ShardFile, shard_name

if TYPE_CHECKING:
    import pandas

MOST_OPEN = 128  # shards that a process has open at once
READERS = 16  # headers read at once over a network


class Features(NamedTuple):
    """An image's maps by level, (chs, h, w) or (chs,), and the (width, height) of its picture in pixels."""

    id: str
    maps: dict[str, Tensor]
    size: tuple[int, int]

    def __repr__(self) -> str:
        maps = ", ".join(f"{level!r}: {tuple(map_.shape)}" for level, map_ in self.maps.items())
        return f"Features({self.id!r}, {{{maps}}}, size={self.size})"


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
        return self[self.row_of(id_)]

    def row_of(self, id_: str) -> int:
        """The index of the image with this id; KeyError with the reason if it has no row."""
        if self._rows is None:
            self._rows = {id_: row for row, id_ in enumerate(self.ids)}
        if id_ not in self._rows:
            reason = next((one.reason for one in self.failed if one.id == id_), "it was not extracted")
            raise KeyError(f"{id_}: {reason}")
        return self._rows[id_]

    def to_numpy(self, level: str | None = None) -> np.ndarray:
        """All rows of a level, (images, chs) or (images, chs, h, w), in the order of `ids`.

        level: one of `levels`; None is the only one. bfloat16, which NumPy does not have, becomes float32.

        Raises ArgumentError if maps have several shapes, if there is no row, and for a level that is not read.
        """
        return to_numpy(self, level)

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row per image: id, width and height of its picture, and a column of vectors per level.

        A cell of these columns is an array (chs,); `numpy.stack(frame[level])` is what `to_numpy` gives.

        Raises ArgumentError for levels that hold maps, MissingPackageError without pandas.
        """
        return to_pandas(self)

    def nearest(
        self,
        query: str | Tensor | np.ndarray | Sequence[float],
        k: int = 10,
        *,
        level: str | None = None,
        metric: Metric = "cosine",
    ) -> list[Neighbour]:
        """The `k` images whose vectors are the most similar to one, the most similar first.

        The search is exact and reads the vectors a block after another. Of equally similar images, the earlier in `ids`
        comes first. The cosine with a vector of zeros is 0; stored vectors with NaN or infinite values are left out.

        query: a vector (chs,), or the id of an image, which is then left out itself.
        level: one of `levels`; None is the only one.
        metric: "cosine", or "dot" for the product without the lengths. Both are computed in float64 and rounded to
            float32.

        Raises ArgumentError for a level that holds maps, for a query of another length or with NaN or infinite values;
        KeyError for an id that has no row.
        """
        return nearest(self, query, k, level, metric)

    def duplicates(self, threshold: float = 0.99, *, level: str | None = None) -> Iterator[Duplicate]:
        """Pairs of images whose vectors have a cosine of at least `threshold`; the first is the earlier in `ids`.

        The search is exact, compares every vector with every other, a block with a block, and gives pairs as it finds
        them, so that memory does not grow with the images or the pairs. Vectors of zeros, and those with NaN or
        infinite values, are similar to none.

        threshold: above 0, at most 1. level: one of `levels`; None is the only one.

        Raises ArgumentError for another threshold and for a level that holds maps.
        """
        return duplicates(self, threshold, level)

    def __repr__(self) -> str:
        return f"FeatureDataset({self.folder!r}, {len(self)} images, levels {self.levels})"

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
