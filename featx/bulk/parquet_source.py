"""Parquet files: tables whose rows hold the images, as many data sets are published, or lists of paths."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

from ..errors import ArgumentError, ImageError, shortened
from ..json_checks import JsonError, parsed
from .file_lists import PLACES, listed, read_place, without_column
from .filesystems import fetched, is_address
from .parquet_reader import BATCH_ROWS, BYTES, PATHS, bare, holding, parquet_file, plain, require_pyarrow, rows_of
from .shard import stamp_of
from .sources import NoImagesError, Source, Tally, UnreadableError

TABLES = (".parquet",)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a Parquet file; the column holds image files, or structs of their `bytes` or else their `path`.

    spots: of a column of lists, row and position of every image; None where each row is an image.
    """

    path: str
    column: str
    names: Sequence[str]
    spots: Sequence[tuple[int, int]] | None = None

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
        rows = rows_of(self.path, self.column, stamp_of(self.path))
        row, position = (index, None) if self.spots is None else self.spots[index]
        if is_address(self.path):
            return fetched(lambda: plain(rows[row], position))
        with _readable(self.path, ImageError):
            return plain(rows[row], position)


def table_images(path: str, tally: Tally, column: str | None = None) -> Source:
    """The images in the rows of a Parquet file, or those that its paths name.

    column: holds the images or the paths; None is the one that can. UnreadableError if the file is none, NoImagesError
    if no column can hold images or the one asked for does not, ArgumentError if several can.
    """
    with _readable(path, UnreadableError), parquet_file(path) as file:
        _require_rows(path, file.metadata)
        schema = file.schema_arrow
        images, paths = _columns(path, schema, column)
        if twice := [name for name in (*images, *paths) if schema.names.count(name) > 1]:
            raise ArgumentError(f"{path} has the column {twice[0]} {schema.names.count(twice[0])} times: rename them")
        if len(images) + len(paths) > 1:
            raise ArgumentError(
                f"{path} has several columns that may say what the images are, "
                f"{', '.join(shortened([*images, *paths]))}: name one (--column, or column= of find_items)"
            )
        if not images:
            return _listed(path, file, paths[0], tally)
        if holding(schema.field(images[0]).type).many:
            return _listed_within(path, file, images[0])
        return Table(path, images[0], _names(file, images[0]))


def _require_rows(path: str, metadata: Any) -> None:
    """UnreadableError if a file and its row groups, of which one is damaged, say different numbers of rows."""
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or sum(groups) != metadata.num_rows:
        raise UnreadableError(
            f"{path} cannot be read as a Parquet file: it says {metadata.num_rows} rows, and {groups[:9]}"
        )


def _listed(path: str, file: Any, column: str, tally: Tally) -> Source:
    """What a column of paths names."""
    ids = _texts(file, "id") if _tells(file.schema_arrow, "id") else None
    cells = _cells(file, column)
    if holding(file.schema_arrow.field(column).type).many:
        rows = [cell or [] for cell in cells]
        ids = ids and [f"{id_}/{number}" for id_, row in zip(ids, rows, strict=True) for number in range(len(row))]
        cells = list(chain.from_iterable(rows))
    places = [_text(cell["path"] if isinstance(cell, dict) else cell) for cell in cells]
    return listed(path, places, ids, tally)


def _listed_within(path: str, file: Any, column: str) -> Table:
    """The images in a column of lists: each is called by its row and its position there."""
    lengths: list[int] = []
    list_value_length = import_module("pyarrow.compute").list_value_length
    for batch in file.iter_batches(BATCH_ROWS, columns=[_leaf(file, column)], use_threads=False):
        lengths += [length or 0 for length in list_value_length(batch.column(0)).to_pylist()]
    spots = [(row, position) for row, length in enumerate(lengths) for position in range(length)]
    rows = _texts(file, "id") if _tells(file.schema_arrow, "id") else []
    if not _tell_apart(rows) or not rows:
        rows = [str(row) for row in range(len(lengths))]
    return Table(path, column, [f"{rows[row]}/{position}" for row, position in spots], spots)


def _leaf(file: Any, column: str) -> str:
    """The path of what is smallest in a column of lists and as long: the images' paths, if they have any."""
    schema = file.schema
    leaves = [schema.column(number).path for number in range(len(schema))]
    return next((leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")), column)


def _columns(path: str, schema: Any, asked: str | None) -> tuple[list[str], list[str]]:
    """The columns that may hold images, and those that may hold paths, one at least; NoImagesError for none."""
    held = {field.name: holding(field.type) for field in schema}
    if asked is not None:
        if asked not in held:
            raise without_column(path, schema.names, asked)
        if held[asked].what is None:
            raise NoImagesError(_of_no_use(path, schema, asked))
        return ([asked], []) if held[asked].what == BYTES else ([], [asked])
    declared = _declared(schema)
    images = [
        name
        for name, one in held.items()
        if one.what == BYTES and one.usual and (not declared or declared.get(name) == "Image")
    ]
    # where it is written which column is of images, a path beside it is none to follow
    known = [] if declared and images else [name for name in PLACES if name in held][:1]
    paths = [name for name in known if name not in images and held[name].what == PATHS]
    if not images and not paths:  # unusual types last: a column of lists may be beside that of the images
        images = [name for name, one in held.items() if one.what == BYTES and not one.usual]
    if len(images) + len(paths) > 1:
        images = [name for name in images if name != "id"]
    if not images and not paths:
        raise NoImagesError(_of_no_use(path, schema, known[0])) if known else without_column(path, schema.names, None)
    return images, paths


def _of_no_use(path: str, schema: Any, column: str) -> str:
    kind = shortened([schema.field(column).type])[0]
    return (
        f"{path}: column {column} holds {kind}: expected paths (text) or image files (bytes), structs with a field "
        "bytes or path, or lists of these"
    )


def is_metadata(path: str) -> bool:
    """Whether a Parquet file is what img2dataset writes beside a tar: a row per image, and no image."""
    with _readable(path, UnreadableError), parquet_file(path) as file:
        schema = file.schema_arrow
        return {"key", "status"} <= set(schema.names) and all(holding(one.type).what != BYTES for one in schema)


def _declared(schema: Any) -> dict[str, Any]:
    """The type that the package datasets wrote of each column, by name; nothing if others made the file."""
    written = (schema.metadata or {}).get(b"huggingface")
    try:
        features = parsed(written or b"{}")["info"]["features"]
        return {name: features[name].object().get("_type") for name in features.object()}
    except JsonError:
        return {}


def _names(file: Any, column: str) -> Sequence[str]:
    """What tells rows apart: the column `id`, or the paths beside the bytes, if they do; their numbers otherwise."""
    schema = file.schema_arrow
    if _tells(schema, "id"):
        names = _texts(file, "id")
        if _tell_apart(names):
            return names
    kind = schema.field(column).type
    if require_pyarrow()[0].types.is_nested(kind) and kind.get_field_index("path") >= 0:
        names = [_text(cell and cell["path"]) for cell in _cells(file, f"{column}.path")]
        if _tell_apart(names):
            return names
    return [str(row) for row in range(file.metadata.num_rows)]


def _tells(schema: Any, column: str) -> bool:
    """Whether a column is there, and its values are single ones."""
    found = schema.get_field_index(column)
    return found >= 0 and not require_pyarrow()[0].types.is_nested(bare(schema.field(found).type))


def _tell_apart(names: Sequence[str]) -> bool:
    return all(names) and len(set(names)) == len(names)


def _texts(file: Any, column: str) -> list[str]:
    return [_text(value) for value in _cells(file, column)]


def _text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else "" if value is None else str(value)


def _cells(file: Any, column: str) -> list[Any]:
    found = file.read(columns=[column]).column(0)
    try:
        return found.to_pylist()
    except UnicodeDecodeError:  # one cell that is no text
        return [plain(cell) for cell in found]


@contextmanager
def _readable(path: str, error: type[ArgumentError | ImageError]) -> Iterator[None]:
    """Within the block whatever says that the file is none, or has changed, is that error."""
    pyarrow, _ = require_pyarrow()
    try:
        yield
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError, MemoryError, StopIteration, IndexError) as problem:
        raise error(f"{path} cannot be read as a Parquet file: {problem}") from problem
