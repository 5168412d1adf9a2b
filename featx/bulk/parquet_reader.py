"""Columns of Parquet files, read with pyarrow: types that can hold images or paths, and cells a few rows at a time."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import Any, Literal, NamedTuple

from ..errors import MissingPackageError
from .config import usable_cores
from .filesystems import is_address, open_binary, open_regular
from .shard import Stamp

Held = Literal["bytes", "paths"]
BYTES: Held = "bytes"
PATHS: Held = "paths"
BATCH_BYTES, BATCH_ROWS = 4 * 2**20, 256  # the most that is read at once, of rows that are smaller
KEPT_BATCHES = 8  # the fewest that stay after they were read
PAGE_BYTES = 2**20  # asked of the file at once


def require_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; MissingPackageError saying how to have them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "tables of images are Parquet files, which pyarrow reads and writes: pip install 'featx[extract]'"
        ) from error
    return pyarrow, pyarrow.parquet


def cell_text(text: str) -> str:
    r"""A text as a cell of a table holds it: surrogates, which UTF-8 cannot hold, as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


class Holding(NamedTuple):
    """What the cells of a column can be: image files, paths of image files, or neither.

    many: each cell is a list of them. usual: the type is one in which images are usually stored, and so is looked for.
    """

    what: Held | None
    many: bool = False
    usual: bool = True


def bare(kind: Any) -> Any:
    """The type of the values themselves, of a dictionary or an extension type."""
    pyarrow, _ = require_pyarrow()
    while True:
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        elif pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def holding(kind: Any) -> Holding:
    """What a column of this type can hold: bytes, text, structs with a field `bytes` or `path`, or lists of these."""
    types = require_pyarrow()[0].types
    inner = bare(kind)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_list(inner) for is_list in lists):
        element = holding(inner.value_type)
        return Holding(None if element.many else element.what, True, False)
    if types.is_struct(inner):
        fields = {field.name: field.type for field in inner}
        if "bytes" in fields and _single(fields["bytes"]) == BYTES:
            return Holding(BYTES, usual=_is_usual(fields["bytes"]))
        return Holding(PATHS if "path" in fields and _single(fields["path"]) == PATHS else None)
    return Holding(_single(kind), usual=_is_usual(kind))


def _single(kind: Any) -> Held | None:
    types, inner = require_pyarrow()[0].types, bare(kind)
    if types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner):
        return PATHS
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return BYTES if any(is_binary(inner) for is_binary in binary) else None


def _is_usual(kind: Any) -> bool:
    types = require_pyarrow()[0].types
    return types.is_binary(kind) or types.is_large_binary(kind)


def plain(scalar: Any, position: int | None = None) -> Any:
    """The value of a cell as bytes, text, a dictionary, a list or a number; of a list the one at a position, if given.

    Bytes of a column of text that are no UTF-8 become what `os.fsdecode` makes of them.
    """
    pyarrow, _ = require_pyarrow()
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.ExtensionScalar):
        return plain(scalar.value, position)
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: plain(scalar[name]) for name in ("bytes", "path") if name in scalar}
    if isinstance(scalar, pyarrow.ListScalar):
        return [plain(one) for one in scalar.values] if position is None else plain(scalar[position])
    if isinstance(scalar, pyarrow.StringScalar):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()


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
