"""Parquet files whose rows contain images, as in many published datasets, or paths of images."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

from ..errors import ArgumentError, ImageError, shortened
from ..json_checks import JsonError, parsed
from .file_lists import PATH_COLUMNS, list_places, missing_column_error, read_place
from .filesystems import fetch_with_retries, is_address
from .parquet_reader import (
    BATCH_ROWS,
    BYTES,
    PATHS,
    column_content,
    column_reader,
    parquet_file,
    require_pyarrow,
    storage_type,
    to_python,
)
from .shard import stamp_of
from .sources import NoImagesError, Source, Tally, UnreadableError

TABLES = (".parquet",)


@dataclass(frozen=True, slots=True)
class Table:
    """Images in a Parquet file, in a column of image files or of structs with `bytes` or `path`.

    Attributes:
        path: of the file.
        column: with the images.
        names: of the images.
        positions: for a column of lists, the row and the index in its list of every image; None for one image per row.
    """

    path: str
    column: str
    names: Sequence[str]
    positions: Sequence[tuple[int, int]] | None = None

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        cell = self._cell(index)
        if isinstance(cell, dict):
            if cell["bytes"] is None and cell.get("path"):
                return read_place(os.path.dirname(self.path), _text(cell["path"]))
            cell = cell["bytes"]
        if cell is None:
            raise ImageError("the row has no image")
        return cell

    def _cell(self, index: int) -> Any:
        rows = column_reader(self.path, self.column, stamp_of(self.path))
        row, position = (index, None) if self.positions is None else self.positions[index]
        if is_address(self.path):
            return fetch_with_retries(lambda: to_python(rows[row], position))
        with _parquet_errors(self.path, ImageError):
            return to_python(rows[row], position)


def table_images(path: str, tally: Tally, column: str | None = None) -> Source:
    """The images in the rows of a Parquet file, or at the paths in its rows.

    Args:
        path: of the file.
        tally: counts skipped images.
        column: with the images or the paths; None is the only suitable one.

    Raises:
        UnreadableError: the file is not a Parquet file.
        NoImagesError: no column, or not the requested one, can contain images or paths.
        ArgumentError: several columns can.
    """
    with _parquet_errors(path, UnreadableError), parquet_file(path) as file:
        _require_rows(path, file.metadata)
        schema = file.schema_arrow
        images, paths = _columns(path, schema, column)
        if repeated := [name for name in (*images, *paths) if schema.names.count(name) > 1]:
            name = repeated[0]
            raise ArgumentError(f"{path} has the column {name} {schema.names.count(name)} times: rename them")
        if len(images) + len(paths) > 1:
            raise ArgumentError(
                f"{path} has several columns that may say what the images are, "
                f"{', '.join(shortened([*images, *paths]))}: name one (--column, or column= of find_items)"
            )
        if not images:
            return _path_source(path, file, paths[0], tally)
        if column_content(schema.field(images[0]).type).many:
            return _list_column_table(path, file, images[0])
        return Table(path, images[0], _names(file, images[0]))


def _require_rows(path: str, metadata: Any) -> None:
    """Raise UnreadableError if the row counts of the file and its row groups disagree, because of damage."""
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise UnreadableError(
            f"{path} cannot be read as a Parquet file: it says {metadata.num_rows} rows, and {groups[:9]}"
        )


def _path_source(path: str, file: Any, column: str, tally: Tally) -> Source:
    """The images at the paths in a column."""
    ids = _texts(file, "id") if _has_flat_column(file.schema_arrow, "id") else None
    cells = _cells(file, column)
    if column_content(file.schema_arrow.field(column).type).many:
        rows = [cell or [] for cell in cells]
        ids = ids and [f"{id_}/{number}" for id_, row in zip(ids, rows, strict=True) for number in range(len(row))]
        cells = list(chain.from_iterable(rows))
    places = [_text(cell["path"] if isinstance(cell, dict) else cell) for cell in cells]
    return list_places(path, places, ids, tally)


def _list_column_table(path: str, file: Any, column: str) -> Table:
    """The images in a column of lists, named by their row and their index in the list."""
    lengths: list[int] = []
    list_value_length = import_module("pyarrow.compute").list_value_length
    for batch in file.iter_batches(BATCH_ROWS, columns=[_leaf(file, column)], use_threads=False):
        lengths += [length or 0 for length in list_value_length(batch.column(0)).to_pylist()]
    positions = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    rows = _texts(file, "id") if _has_flat_column(file.schema_arrow, "id") else []
    if not _are_unique(rows) or not rows:
        rows = [str(row) for row in range(len(lengths))]
    return Table(path, column, [f"{rows[row]}/{position}" for row, position in positions], positions)


def _leaf(file: Any, column: str) -> str:
    """The smallest leaf column from which the lengths of the lists can be read: the paths, if they exist."""
    schema = file.schema
    leaves = [schema.column(number).path for number in range(len(schema))]
    return next((leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")), column)


def _columns(path: str, schema: Any, requested: str | None) -> tuple[list[str], list[str]]:
    """The columns that can contain images, and those that can contain paths; NoImagesError if there are neither."""
    contents = {field.name: column_content(field.type) for field in schema}
    if requested is not None:
        if requested not in contents:
            raise missing_column_error(path, schema.names, requested)
        if contents[requested].kind is None:
            raise NoImagesError(_unsupported_column(path, schema, requested))
        return ([requested], []) if contents[requested].kind == BYTES else ([], [requested])
    declared = _declared(schema)
    images = [
        name
        for name, content in contents.items()
        if content.kind == BYTES and content.usual and (not declared or declared.get(name) == "Image")
    ]
    # if the file declares the column of images, a column of paths beside it is only metadata
    known = [] if declared and images else [name for name in PATH_COLUMNS if name in contents][:1]
    paths = [name for name in known if name not in images and contents[name].kind == PATHS]
    if not images and not paths:  # unusual types last: a column of lists may be beside that of the images
        images = [name for name, content in contents.items() if content.kind == BYTES and not content.usual]
    if len(images) + len(paths) > 1:
        images = [name for name in images if name != "id"]
    if not images and not paths:
        if known:
            raise NoImagesError(_unsupported_column(path, schema, known[0]))
        raise missing_column_error(path, schema.names, None)
    return images, paths


def _unsupported_column(path: str, schema: Any, column: str) -> str:
    kind = shortened([schema.field(column).type])[0]
    return (
        f"{path}: column {column} holds {kind}: expected paths (text) or image files (bytes), structs with a field "
        "bytes or path, or lists of these"
    )


def is_metadata(path: str) -> bool:
    """Whether a Parquet file is metadata that img2dataset writes beside a tar: a row per image, without images."""
    with _parquet_errors(path, UnreadableError), parquet_file(path) as file:
        schema = file.schema_arrow
        return {"key", "status"} <= set(schema.names) and all(
            column_content(field.type).kind != BYTES for field in schema
        )


def _declared(schema: Any) -> dict[str, Any]:
    """The feature type of each column that the package datasets declared, by name; empty for other files."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parsed(written or b"{}")["info"]["features"]
        return {name: features[name].object().get("_type") for name in features.object()}
    except JsonError:
        return {}


def _names(file: Any, column: str) -> Sequence[str]:
    """Unique names of the rows: the column `id`, or else the paths beside the bytes, or else row numbers."""
    schema = file.schema_arrow
    if _has_flat_column(schema, "id"):
        names = _texts(file, "id")
        if _are_unique(names):
            return names
    kind = schema.field(column).type
    if require_pyarrow()[0].types.is_nested(kind) and kind.get_field_index("path") >= 0:
        names = [_text(cell and cell["path"]) for cell in _cells(file, f"{column}.path")]
        if _are_unique(names):
            return names
    return [str(row) for row in range(file.metadata.num_rows)]


def _has_flat_column(schema: Any, column: str) -> bool:
    """Whether a column exists, and its type is not nested."""
    index = schema.get_field_index(column)
    return index >= 0 and not require_pyarrow()[0].types.is_nested(storage_type(schema.field(index).type))


def _are_unique(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _texts(file: Any, column: str) -> list[str]:
    return [_text(value) for value in _cells(file, column)]


def _text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else "" if value is None else str(value)


def _cells(file: Any, column: str) -> list[Any]:
    cells = file.read(columns=[column]).column(0)
    try:
        return cells.to_pylist()
    except UnicodeDecodeError:  # a cell is not valid UTF-8
        return [to_python(cell) for cell in cells]


@contextmanager
def _parquet_errors(path: str, error: type[ArgumentError | ImageError]) -> Iterator[None]:
    """A context that raises `error` if the file is not a Parquet file, is damaged or has changed."""
    pyarrow, _ = require_pyarrow()
    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError, MemoryError, StopIteration, IndexError) as problem:
        raise error(f"{path} cannot be read as a Parquet file: {problem}") from problem
