"""Lists of images: one path or address a line, or a table with a column of them."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os.path import splitext

from ..errors import ArgumentError
from .parquet import require_pyarrow
from .sources import read_file
from .systems import fetched, is_address, read_whole

LISTS = (".txt", ".csv", ".parquet")
# Columns that may say where images are; the first that is there counts.
PLACES = ("path", "source")


@dataclass(frozen=True, slots=True)
class Listed:
    """Files by their `places`: addresses, and paths that are relative to `base`."""

    base: str
    names: Sequence[str]
    places: Sequence[str]

    def where(self, index: int) -> str:
        place = self.places[index]
        return place if is_address(place) else os.path.join(self.base, place)

    def read(self, index: int) -> bytes:
        place = self.where(index)
        return fetched(lambda: read_whole(place)) if is_address(place) else read_file(place)


def listed_images(path: str) -> Listed:
    """What a list names, in its order; its "id" column, or the paths as they are written, tell images apart.

    Paths are relative to the list. Raises ArgumentError for a list that cannot be read or has no column of paths.
    """
    try:
        columns = READ[splitext(path)[1].lower()](read_whole(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"{path} cannot be read as a list of images: {error}") from error
    places = next((columns[name] for name in PLACES if name in columns), None)
    if places is None:
        raise ArgumentError(f"{path} has the columns {', '.join(columns)}: expected one named path")
    if empty := [row for row, place in enumerate(places) if not place]:
        raise ArgumentError(f"{path} names no image in row {empty[0] + 1}")
    return Listed(os.path.dirname(path), columns.get("id", places), places)


def _lines(content: bytes) -> dict[str, list[str]]:
    text = content.decode("utf-8-sig", "surrogateescape")
    return {"path": [line for line in text.splitlines() if line.strip()]}


def _csv(content: bytes) -> dict[str, list[str]]:
    text = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
    header, *rows = csv.reader(text, strict=True)
    if odd := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise ValueError(f"line {odd[0]} has not the {len(header)} values of the header")
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _parquet(content: bytes) -> dict[str, list[str]]:
    pyarrow, parquet = require_pyarrow()
    file = parquet.ParquetFile(pyarrow.BufferReader(content))
    wanted = [name for name in file.schema_arrow.names if name in (*PLACES, "id")]
    if not wanted:
        return {name: [] for name in file.schema_arrow.names}
    table = file.read(columns=wanted)
    as_strings = partial(map, lambda value: "" if value is None else str(value))
    return {name: list(as_strings(table.column(name).to_pylist())) for name in wanted}


READ = {".txt": _lines, ".csv": _csv, ".parquet": _parquet}
