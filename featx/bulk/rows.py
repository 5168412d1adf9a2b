"""Cells of a column of a Parquet file, a few rows at a time, however large the file and its row groups are."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import Any

from .parquet import require_pyarrow
from .recipe import usable_cores
from .shard import Stamp
from .systems import is_address, open_binary, open_regular

BATCH_BYTES, BATCH_ROWS = 4 * 2**20, 256  # the most that is read at once, of rows that are smaller
KEPT_BATCHES = 8  # the fewest that stay after they were read
PAGE_BYTES = 2**20  # asked of the file at once


class Rows:
    """A column's cells by row. Whoever asks about in order, from any number of threads, has each row read once."""

    def __init__(self, path: str, column: str) -> None:
        self._path, self._column = path, column
        self._lock = Lock()
        self._file: Any = None
        self._starts: list[int] = []  # the first row of each row group, and how many rows there are
        self._batches: Iterator[Any] = iter(())
        self._group, self._next = -1, 0
        self._kept: deque[tuple[int, Any]] = deque()  # the latest batches, with the number of their first rows
        self._kept_rows = 2 * usable_cores()  # the fewest that stay: a thread that comes later begins the group again

    def __getitem__(self, row: int) -> Any:
        """The cell, as a scalar of pyarrow. Raises what that and file systems do, and begins anew when asked again."""
        with self._lock:
            try:
                first, cells = self._batch(row)
            except BaseException:
                self._file, self._group = None, -1
                self._kept.clear()
                raise
        return cells[row - first]

    def _batch(self, row: int) -> tuple[int, Any]:
        for first, cells in self._kept:
            if first <= row < first + len(cells):
                return first, cells
        if self._file is None:
            self._file = parquet_file(self._path)
            groups = (self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups))
            self._starts = list(accumulate(groups, initial=0))
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._batches, self._group, self._next = self._read(group), group, self._starts[group]
        while self._next <= row:
            cells = next(self._batches).column(0)
            self._kept.append((self._next, cells))
            self._next += len(cells)
            while len(self._kept) > KEPT_BATCHES and self._kept[1][0] + self._kept_rows <= self._next:
                self._kept.popleft()
        return self._kept[-1]

    def _read(self, group: int) -> Iterator[Any]:
        """The batches of a row group, of as many rows as fill the bytes allowed.

        The bytes are of all columns: pyarrow ends the process when it is asked for a column of a damaged file.
        """
        told = self._file.metadata.row_group(group)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * told.num_rows // max(1, told.total_byte_size)))
        return self._file.iter_batches(rows, [group], [self._column], use_threads=False)


@lru_cache(maxsize=8)
def rows_of(path: str, column: str, stamp: Stamp | None) -> Rows:  # noqa: ARG001
    """The cells of a column; this process's own, which all of its threads share; others once the file has changed."""
    return Rows(path, column)


def parquet_file(path: str) -> Any:
    """The pyarrow.parquet.ParquetFile of a path or an address, whose row groups are read page by page."""
    _, parquet = require_pyarrow()
    if is_address(path):
        return parquet.ParquetFile(open_binary(path), buffer_size=PAGE_BYTES, pre_buffer=False)
    open_regular(path).close()  # pyarrow would wait for whoever writes to a pipe
    return parquet.ParquetFile(path, buffer_size=PAGE_BYTES, pre_buffer=False)
