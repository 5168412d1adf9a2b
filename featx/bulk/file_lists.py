"""Lists of images: text files with a path or address per line, and tables with a column of them."""

import codecs
import csv
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext

from ..errors import ArgumentError, ImageError, shortened
from .filesystems import fetch_with_retries, is_address, read_whole
from .sources import TWICE, NoImagesError, Tally, read_file

LISTS = (".txt", ".csv")
STDIN = "-"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes lists
# Columns that may contain paths; the first that exists is used.
PATH_COLUMNS = ("path", "source")


@dataclass(frozen=True, slots=True)
class Listed:
    """Files of a list: `places` are addresses, or paths relative to `base`."""

    base: str
    names: Sequence[str]
    places: Sequence[str]

    def where(self, index: int) -> str:
        return place_of(self.base, self.places[index])

    def read(self, index: int) -> bytes:
        return read_place(self.base, self.places[index])


def place_of(base: str, place: str) -> str:
    """The address, or the path joined to `base`."""
    return place if is_address(place) else os.path.join(base, place)


def read_place(base: str, place: str) -> bytes:
    """The bytes at an address or at a path relative to `base`; ImageError if they cannot be read."""
    if not place:
        raise ImageError("the row names no image")
    place = place_of(base, place)
    return fetch_with_retries(lambda: read_whole(place)) if is_address(place) else read_file(place)


def listed_images(path: str, tally: Tally, column: str | None = None) -> Listed:
    """The images of a list, in its order. Their names are the column "id", or else the paths as written.

    Args:
        path: of the list, which its relative paths start from.
        tally: counts skipped images.
        column: with the paths, in a list with columns.

    Raises:
        ArgumentError: the list cannot be read or has no column of paths.
    """
    kind = splitext(path)[1].lower()
    try:
        columns = READ[kind](read_whole(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"{path} cannot be read as a list of images: {error}") from error
    requested = None if kind == ".txt" else column
    path_column = next((name for name in ([requested] if requested else PATH_COLUMNS) if name in columns), None)
    if path_column is None:
        raise missing_column_error(path, list(columns), column)
    return list_places(path, columns[path_column], columns.get("id"), tally)


def listed_in_stdin(tally: Tally) -> Listed:
    """The images on standard input, a path or address per line, relative to the working directory."""
    return list_places("", _lines(sys.stdin.buffer.read())["path"], None, tally)


def list_places(path: str, places: Sequence[str], ids: Sequence[str] | None, tally: Tally) -> Listed:
    """The images at these places, relative to the list at `path`; without ids, duplicate places are dropped.

    An empty id is replaced by the place; an empty place is an image that fails.
    """
    base = os.path.dirname(path)
    names = [place or f"row {row}" for row, place in enumerate(places, 1)]
    if ids is not None:
        return Listed(base, [id_ or name for id_, name in zip(ids, names, strict=True)], places)
    first: dict[str, int] = {}
    for row, (place, name) in enumerate(zip(places, names, strict=True)):
        first.setdefault(_normalized(base, place) if place else name, row)
    tally.count(TWICE, len(places) - len(first))
    return Listed(base, [names[row] for row in first.values()], [places[row] for row in first.values()])


def _normalized(base: str, place: str) -> str:
    """The place in a canonical spelling, without access to the file system."""
    if is_address(place):
        return place
    path = os.path.join(os.path.abspath(base), place)
    return path if os.pardir in path.split(os.sep) else os.path.normpath(path)  # a link may precede a ".."


def missing_column_error(path: str, names: Sequence[str], column: str | None) -> NoImagesError:
    """The error for a table without the requested column, or without a column of images or paths."""
    expected = column or "path, or tell which one holds paths or images (--column, or column= of find_items)"
    return NoImagesError(f"{path} has the columns {', '.join(shortened(names))}: expected one named {expected}")


def _text(content: bytes) -> str:
    if content.startswith(UTF_16):
        return content.decode("utf-16", "backslashreplace")
    return content.decode("utf-8-sig", "surrogateescape")


def _lines(content: bytes) -> dict[str, list[str]]:
    """Lines separated by \\n or \\r\\n; other line separators of Unicode may be part of a name."""
    lines = [line.removesuffix("\r") for line in _text(content).split("\n")]
    return {"path": [line for line in lines if line.strip(" \t")]}


def _csv(content: bytes) -> dict[str, list[str]]:
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    rows = [(reader.line_num, row) for row in reader if len(row) > 1 or any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError("it has no header")
    (_, header), *rows = rows
    if wrong := [number for number, row in rows if len(row) != len(header)]:
        raise ValueError(f"line {wrong[0]} does not have the {len(header)} values of the header")
    return {name: [row[i] for _, row in rows] for i, name in enumerate(header)}


READ: Mapping[str, Callable[[bytes], dict[str, list[str]]]] = {".txt": _lines, ".csv": _csv}
