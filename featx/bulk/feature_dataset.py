"""FeatureDataset: extracted maps as a map-style dataset."""

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
from .filesystems import is_address, join
from .growth import current_rows
from .header import Header, number_of, read_header
from .meta import Meta, require_meta
from .output_folder import shards_in
from .search import Duplicate, Metric, Neighbor, duplicates, nearest
from .shard import Failure, ShardFile, shard_name

if TYPE_CHECKING:
    import pandas

MOST_OPEN = 128  # open shards per process
READERS = 16  # concurrent reads of headers over a network


class Features(NamedTuple):
    """The maps of an image.

    Attributes:
        id: of the image.
        maps: by level, (chs, h, w) or (chs,).
        size: (width, height) of the original image in pixels.
    """

    id: str
    maps: dict[str, Tensor]
    size: tuple[int, int]

    def __repr__(self) -> str:
        maps = ", ".join(f"{level!r}: {tuple(map_.shape)}" for level, map_ in self.maps.items())
        return f"Features({self.id!r}, {{{maps}}}, size={self.size})"


class FeatureDataset(Dataset[Features]):
    """The maps that `featx.extract` wrote to a folder, in the order of extraction.

    If an image was extracted several times, its latest row is used. Images in `failed` have no row, and images in
    `removed` are left out. Each process opens the files itself, so that the workers of a DataLoader can use the
    dataset.

    Args:
        folder: a path, or an address that fsspec supports, from which only headers and requested rows are fetched.
        levels: names of the levels to read; None reads all.

    Raises:
        OutputError: the folder has no maps, or a file is damaged or was overwritten after its header was read.
        ArgumentError: a level does not exist.
        KeyError: an id does not exist.
        IndexError: an index does not exist.
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
        """The content of meta.json."""
        return self._meta.facts

    @property
    def ids(self) -> list[str]:
        """The id of every row."""
        return [id_ for header in self._headers for id_ in header.ids]

    @property
    def failed(self) -> list[Failure]:
        """The images that failed, with the reasons."""
        return [failure for header in self._headers for failure in header.failed]

    @property
    def removed(self) -> list[str]:
        """Ids of extracted images that are no longer among the inputs."""
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
        """The maps of the image with this id; KeyError with the reason if it has no row."""
        return self[self.row_of(id_)]

    def row_of(self, id_: str) -> int:
        """The index of the image with this id; KeyError with the reason if it has no row."""
        if self._rows is None:
            self._rows = {id_: row for row, id_ in enumerate(self.ids)}
        if id_ not in self._rows:
            reasons = (failure.reason for failure in self.failed if failure.id == id_)
            reason = next(reasons, "it was not extracted")
            raise KeyError(f"{id_}: {reason}")
        return self._rows[id_]

    def to_numpy(self, level: str | None = None) -> np.ndarray:
        """All rows of a level as an array.

        Args:
            level: one of `levels`; None if there is only one.

        Returns:
            An array (images, chs) or (images, chs, h, w), in the order of `ids`. bfloat16, which NumPy lacks, becomes
            float32.

        Raises:
            ArgumentError: the maps have several shapes, there are no rows, or the level is not among `levels`.
        """
        return to_numpy(self, level)

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row per image: id, width and height of the image, and a column of vectors per level.

        A cell of a vector column is an array (chs,); `numpy.stack(frame[level])` equals `to_numpy(level)`.

        Raises:
            ArgumentError: a level has maps instead of vectors.
            MissingPackageError: pandas is not installed.
        """
        return to_pandas(self)

    def nearest(
        self,
        query: str | Tensor | np.ndarray | Sequence[float],
        k: int = 10,
        *,
        level: str | None = None,
        metric: Metric = "cosine",
    ) -> list[Neighbor]:
        """The `k` images whose vectors are most similar to a query, the most similar first.

        The search is exact and reads the vectors in blocks. Equally similar images are in the order of `ids`. The
        cosine with a vector of zeros is 0; stored vectors with NaN or infinite values are ignored.

        Args:
            query: a vector (chs,), or the id of an image, which is then excluded from the result.
            k: number of images.
            level: one of `levels`; None if there is only one.
            metric: "cosine", or "dot" for the dot product. Both are computed in float64 and rounded to float32.

        Raises:
            ArgumentError: the level has maps, or the query has another length or values that are not finite.
            KeyError: the id has no row.
        """
        return nearest(self, query, k, level, metric)

    def duplicates(self, threshold: float = 0.99, *, level: str | None = None) -> Iterator[Duplicate]:
        """Pairs of images whose vectors have a cosine of at least `threshold`; the first is earlier in `ids`.

        The search is exact: it compares every vector with every other, block by block. It yields pairs immediately, so
        that memory use does not depend on the numbers of images and pairs. Vectors of zeros, and vectors with NaN or
        infinite values, are in no pair.

        Args:
            threshold: minimum cosine, above 0 and at most 1.
            level: one of `levels`; None if there is only one.

        Raises:
            ArgumentError: the threshold is out of range, or the level has maps.
        """
        return duplicates(self, threshold, level)

    def __repr__(self) -> str:
        return f"FeatureDataset({self.folder!r}, {len(self)} images, levels {self.levels})"

    def __getstate__(self) -> Mapping[str, Any]:
        return {**vars(self), "_open": {}, "_rows": None}

    def _map(self, shard: int, level: str, row: int) -> Tensor:
        dtype, shape, start, end = self._headers[shard].span(level, row)
        return torch.frombuffer(self._file(shard).read(start, end), dtype=dtype).reshape(shape)

    def _file(self, shard: int) -> ShardFile:
        """The shard's file, opened by this process; files that other threads are reading stay open."""
        file = self._open.get(shard)
        if file is None:
            if len(self._open) >= MOST_OPEN:
                self._open = {}
            path = join(self.folder, self._names[shard])
            self._open[shard] = file = ShardFile(path, self._headers[shard].version)
        return file


def _shards(folder: str, meta: Meta) -> tuple[list[str], list[Header]]:
    """Names and headers of the shards of all finished generations of the folder."""
    plans = {name: meta.generation_of(number_of(name)) for name in shards_in(folder)}
    finished = {name: plan for name, plan in plans.items() if plan is not None}
    if meta.has_grown and (
        missing := set(chain.from_iterable(p.numbers for p in meta.generations)) - set(map(number_of, finished))
    ):
        raise OutputError(f"{join(folder, shard_name(min(missing)))} is missing from a complete extraction")

    def header_of(name: str) -> Header:
        return read_header(join(folder, name), finished[name])

    if is_address(folder):
        with ThreadPoolExecutor(READERS) as pool:
            headers = list(pool.map(header_of, finished))
    else:
        headers = list(map(header_of, finished))
    return list(finished), current_rows(headers, meta)
