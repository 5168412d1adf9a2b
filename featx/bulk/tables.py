"""Parquet files: tables whose rows hold the images, as many data sets are published, or lists of paths."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, ImageError
from ..json_checks import JsonError, parsed
from .lists import PLACES, listed, read_place
from .parquet import require_pyarrow
from .rows import parquet_file, rows_of
from .sources import Source
from .systems import fetched, is_address

TABLES = (".parquet",)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a Parquet file; the column holds image files, or structs of their `bytes` or else their `path`."""

    path: str
    column: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return f"{self.path}/{self.names[index]}"

    def read(self, index: int) -> bytes:
        cell = self._cell(index)
        if isinstance(cell, dict):
            if cell["bytes"] is None and cell.get("path"):
                return read_place(os.path.dirname(self.path), cell["path"])
            cell = cell["bytes"]
        if cell is None:
            raise ImageError("the row has no image")
        return cell

    def _cell(self, index: int) -> Any:
        rows = rows_of(self.path, self.column)
        if is_address(self.path):
            return fetched(lambda: rows[index])
        with _readable(self.path, ImageError):
            return rows[index]


def table_images(path: str, column: str | None = None) -> Source:
    """The images in the rows of a Parquet file, or those that its paths name.

    column: holds the images or the paths; None is the one that can. ArgumentError if none can, or several.
    """
    with _readable(path, ArgumentError), parquet_file(path) as file:
        schema = file.schema_arrow
        images, paths = _columns(schema, column)
        if len(images) + len(paths) > 1:
            raise ArgumentError(
                f"{path} has several columns that may say what the images are, {', '.join([*images, *paths])}: name "
                "one (--column, or column= of find_items)"
            )
        if images:
            return Table(path, images[0], _names(file, images[0]))
        wanted = [*paths, *(["id"] if "id" in schema.names else [])]
        texts = {name: _texts(file.read(columns=[name]).column(0)) for name in wanted}
        return listed(path, texts if paths else {name: [] for name in schema.names}, column)


def _columns(schema: Any, asked: str | None) -> tuple[list[str], list[str]]:
    """The columns that may hold images, and those that may hold paths."""
    declared = _declared(schema)
    images = [
        field.name
        for field in schema
        if _holds_bytes(field.type) and (not declared or declared.get(field.name) == "Image")
    ]
    if asked is None:
        # where it is written which column is of images, a path beside it is none to follow
        known = [] if declared and images else [name for name in PLACES if name in schema.names]
        return images, [name for name in known[:1] if name not in images]
    images = [field.name for field in schema if field.name == asked and _holds_bytes(field.type)]
    return images, [name for name in schema.names if name == asked and not images]


def _declared(schema: Any) -> dict[str, Any]:
    """The type that the package datasets wrote of each column, by name; nothing if others made the file."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parsed(written or b"{}")["info"]["features"]
        return {name: features[name].object().get("_type") for name in features.object()}
    except JsonError:
        return {}


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's cells are bytes, or structs that have them in `bytes`."""
    types = require_pyarrow()[0].types
    if types.is_struct(kind):
        within = kind.get_field_index("bytes")
        return within >= 0 and _holds_bytes(kind.field(within).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _names(file: Any, column: str) -> Sequence[str]:
    """What tells rows apart: the column `id`, or the paths beside the bytes, if they do; their numbers otherwise."""
    nested = require_pyarrow()[0].types.is_nested
    schema = file.schema_arrow
    if "id" in schema.names and not nested(schema.field("id").type):
        names = _texts(file.read(columns=["id"]).column(0))
        if _tell_apart(names):
            return names
    kind = schema.field(column).type
    if nested(kind) and kind.get_field_index("path") >= 0:
        cells = file.read(columns=[f"{column}.path"]).column(0)
        names = [(cell and cell["path"]) or "" for cell in cells.to_pylist()]
        if _tell_apart(names):
            return names
    return [str(row) for row in range(file.metadata.num_rows)]


def _tell_apart(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _texts(column: Any) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


@contextmanager
def _readable(path: str, error: type[ArgumentError | ImageError]) -> Iterator[None]:
    """Within the block whatever says that the file is none, or has changed, is that error."""
    pyarrow, _ = require_pyarrow()
    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError, StopIteration, IndexError) as problem:
        raise error(f"{path} cannot be read as a Parquet file: {problem}") from problem
