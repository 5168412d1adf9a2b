"""Lists of images: one path or address a line, or a table with a column of them."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext

from ..errors import ArgumentError
from .sources import read_file
from .systems import fetched, is_address, read_whole

LISTS = (".txt", ".csv")
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
        return read_place(self.base, self.places[index])


def read_place(base: str, place: str) -> bytes:
    """The bytes at an address, or at a path relative to `base`; ImageError if they cannot be had."""
    place = place if is_address(place) else os.path.join(base, place)
    return fetched(lambda: read_whole(place)) if is_address(place) else read_file(place)


def listed_images(path: str, column: str | None = None) -> Listed:
    """What a list names, in its order; its "id" column, or the paths as they are written, tell images apart.

    column: holds the paths, of a list that has columns. Paths are relative to the list. Raises ArgumentError for a list
    that cannot be read or has no column of paths.
    """
    kind = splitext(path)[1].lower()
    try:
        columns = READ[kind](read_whole(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"{path} cannot be read as a list of images: {error}") from error
    return listed(path, columns, None if kind == ".txt" else column)


def listed(path: str, columns: Mapping[str, Sequence[str]], column: str | None = None) -> Listed:
    """The images that columns of a list name; see `listed_images`."""
    place = next((name for name in ([column] if column else PLACES) if name in columns), None)
    if place is None:
        wanted = column or "path, or tell which one holds paths or images (--column, or column= of find_items)"
        raise ArgumentError(f"{path} has the columns {', '.join(columns)}: expected one named {wanted}")
    places = columns[place]
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


READ = {".txt": _lines, ".csv": _csv}
