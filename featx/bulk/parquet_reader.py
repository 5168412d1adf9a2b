"""Reading of columns of Parquet files with pyarrow: which types can contain images or paths, and buffered cells."""

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

ContentKind = Literal["bytes", "paths"]
BYTES: ContentKind = "bytes"
PATHS: ContentKind = "paths"
BATCH_BYTES, BATCH_ROWS = 4 * 2**20, 256  # limits of one read; a single row may be larger
KEPT_BATCHES = 8  # minimum number of batches in the buffer
PAGE_BYTES = 2**20  # of one request to the file


def require_pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; MissingPackageError if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackageError(
            "tables of images are Parquet files, which pyarrow reads and writes: pip install 'featx[extract]'"
        ) from error
    return pyarrow, pyarrow.parquet


def cell_text(text: str) -> str:
    r"""A text for a cell of a table, with surrogates, which UTF-8 cannot encode, escaped as \udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


class ColumnContent(NamedTuple):
    """What the cells of a column can contain.

    Attributes:
        kind: image files, paths of image files, or None for neither.
        many: whether each cell is a list of them.
        usual: whether images are usually stored in this type, so that the column is found automatically.
    """

    kind: ContentKind | None
    many: bool = False
    usual: bool = True


def storage_type(kind: Any) -> Any:
    """The type of the values of a dictionary or extension type; other types unchanged."""
    pyarrow, _ = require_pyarrow()
    while True:
        if isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        elif pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def column_content(kind: Any) -> ColumnContent:
    """The content of a column type: bytes, text, structs with a field `bytes` or `path`, or lists of these."""
    types = require_pyarrow()[0].types
    inner = storage_type(kind)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_list(inner) for is_list in lists):
        element = column_content(inner.value_type)
        return ColumnContent(None if element.many else element.kind, True, False)
    if types.is_struct(inner):
        fields = {field.name: field.type for field in inner}
        if "bytes" in fields and _single(fields["bytes"]) == BYTES:
            return ColumnContent(BYTES, usual=_is_usual(fields["bytes"]))
        return ColumnContent(PATHS if "path" in fields and _single(fields["path"]) == PATHS else None)
    return ColumnContent(_single(kind), usual=_is_usual(kind))


def _single(kind: Any) -> ContentKind | None:
    types, inner = require_pyarrow()[0].types, storage_type(kind)
    if types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner):
        return PATHS
    binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    return BYTES if any(is_binary(inner) for is_binary in binary) else None


def _is_usual(kind: Any) -> bool:
    types = require_pyarrow()[0].types
    return types.is_binary(kind) or types.is_large_binary(kind)


def to_python(scalar: Any, position: int | None = None) -> Any:
    """The value of a cell as bytes, text, a dictionary, a list or a number; or the element of a list at `position`.

    Text that is not valid UTF-8 is decoded like `os.fsdecode`.
    """
    pyarrow, _ = require_pyarrow()
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.ExtensionScalar):
        return to_python(scalar.value, position)
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: to_python(scalar[name]) for name in ("bytes", "path") if name in scalar}
    if isinstance(scalar, pyarrow.ListScalar):
        return [to_python(value) for value in scalar.values] if position is None else to_python(scalar[position])
    if isinstance(scalar, pyarrow.StringScalar):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    return scalar.as_py()


class ColumnReader:
    """A thread-safe, buffered reader of a column's cells. Rows that are requested about in order are read only once."""

    def __init__(self, path: str, column: str) -> None:
        self._path, self._column = path, column
        self._lock = Lock()
        self._file: Any = None
        self._starts: list[int] = []  # the first row of each row group, and the number of rows
        self._batches: Iterator[Any] = iter(())
        self._group, self._next = -1, 0
        self._kept: deque[tuple[int, Any]] = deque()  # the latest batches, each with the index of its first row
        self._kept_rows = 2 * usable_cores()  # minimum: a thread that needs an older row reads the row group again

    def __getitem__(self, row: int) -> Any:
        """The cell as a pyarrow scalar. After an error of pyarrow or a file system, the next call reopens the file."""
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
        """The batches of a row group, with as many rows as fit into BATCH_BYTES.

        The bytes of all columns count, because pyarrow crashes if asked for those of one column of a damaged file.
        """
        metadata = self._file.metadata.row_group(group)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
        return self._file.iter_batches(rows, [group], [self._column], use_threads=False)


@lru_cache(maxsize=8)
def column_reader(path: str, column: str, stamp: Stamp | None) -> ColumnReader:  # noqa: ARG001
    """The reader of a column, which all threads of this process share; a changed stamp gives a new reader."""
    return ColumnReader(path, column)


def parquet_file(path: str) -> Any:
    """The pyarrow.parquet.ParquetFile of a path or an address, which reads row groups page by page."""
    _, parquet = require_pyarrow()
    if is_address(path):
        return parquet.ParquetFile(open_binary(path), buffer_size=PAGE_BYTES, pre_buffer=False)
    open_regular(path).close()  # pyarrow would block on a pipe
    return parquet.ParquetFile(path, buffer_size=PAGE_BYTES, pre_buffer=False)
