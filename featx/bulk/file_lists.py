"""Lists of images: one path or address a line, or a table with a column of them."""

import codecs
import csv
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext

from ..errors import ArgumentError, ImageError, shortened
from .filesystems import fetched, is_address, read_whole
from .sources import TWICE, NoImagesError, Tally, read_file

LISTS = (".txt", ".csv")
STDIN = "-"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as PowerShell writes lists
# Columns that may say where images are; the first that is there counts.
PLACES = ("path", "source")


@dataclass(frozen=True, slots=True)
class Listed:
    """Files by their `places`: addresses, and paths that are relative to `base`."""

    base: str
    names: Sequence[str]
    places: Sequence[str]

    def where(self, index: int) -> str:
        return place_of(self.base, self.places[index])

    def read(self, index: int) -> bytes:
        return read_place(self.base, self.places[index])


def place_of(base: str, place: str) -> str:
    """An address as it is, a path as it is seen from here."""
    return place if is_address(place) else os.path.join(base, place)


def read_place(base: str, place: str) -> bytes:
    """The bytes at an address, or at a path relative to `base`; ImageError if they cannot be had."""
    if not place:
        raise ImageError("the row names no image")
    place = place_of(base, place)
    return fetched(lambda: read_whole(place)) if is_address(place) else read_file(place)


def listed_images(path: str, tally: Tally, column: str | None = None) -> Listed:
    """What a list names, in its order; its "id" column, or the paths as they are written, tell images apart.

    column: holds the paths, of a list that has columns. Paths are relative to the list. Raises ArgumentError for a list
    that cannot be read or has no column of paths.
    """
    kind = splitext(path)[1].lower()
    try:
        columns = READ[kind](read_whole(path))
    except (OSError, ValueError, csv.Error) as error:
        raise ArgumentError(f"{path} cannot be read as a list of images: {error}") from error
    asked = None if kind == ".txt" else column
    place = next((name for name in ([asked] if asked else PLACES) if name in columns), None)
    if place is None:
        raise without_column(path, list(columns), column)
    return listed(path, columns[place], columns.get("id"), tally)


def listed_in_stdin(tally: Tally) -> Listed:
    """What standard input names, a path or address a line; paths are relative to where the program runs."""
    return listed("", _lines(sys.stdin.buffer.read())["path"], None, tally)


def listed(path: str, places: Sequence[str], ids: Sequence[str] | None, tally: Tally) -> Listed:
    """The images at these places, which are relative to the list; without ids, a place that is there twice counts once.

    An id that is empty is the place, and a place that is empty is an image that fails.
    """
    base = os.path.dirname(path)
    names = [place or f"row {row}" for row, place in enumerate(places, 1)]
    if ids is not None:
        return Listed(base, [id_ or name for id_, name in zip(ids, names, strict=True)], places)
    first: dict[str, int] = {}
    for row, (place, name) in enumerate(zip(places, names, strict=True)):
        first.setdefault(_spelt(base, place) if place else name, row)
    tally.count(TWICE, len(places) - len(first))
    return Listed(base, [names[row] for row in first.values()], [places[row] for row in first.values()])


def _spelt(base: str, place: str) -> str:
    """The place in the same spelling whichever way it was written; nothing is looked up."""
    if is_address(place):
        return place
    path = os.path.join(os.path.abspath(base), place)
    return path if os.pardir in path.split(os.sep) else os.path.normpath(path)  # links may lie before a ".."


def without_column(path: str, names: Sequence[str], column: str | None) -> NoImagesError:
    """The error for a table without the column asked for, or without one that may say what the images are."""
    wanted = column or "path, or tell which one holds paths or images (--column, or column= of find_items)"
    return NoImagesError(f"{path} has the columns {', '.join(shortened(names))}: expected one named {wanted}")


def _text(content: bytes) -> str:
    if content.startswith(UTF_16):
        return content.decode("utf-16", "backslashreplace")
    return content.decode("utf-8-sig", "surrogateescape")


def _lines(content: bytes) -> dict[str, list[str]]:
    """Lines end as in POSIX and Windows; what else Unicode takes for an end may be part of a name."""
    lines = [line.removesuffix("\r") for line in _text(content).split("\n")]
    return {"path": [line for line in lines if line.strip(" \t")]}


def _csv(content: bytes) -> dict[str, list[str]]:
    reader = csv.reader(io.StringIO(_text(content), newline=""), strict=True)
    rows = [(reader.line_num, row) for row in reader if len(row) > 1 or any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError("it has no header")
    (_, header), *rows = rows
    if odd := [number for number, row in rows if len(row) != len(header)]:
        raise ValueError(f"line {odd[0]} has not the {len(header)} values of the header")
    return {name: [row[i] for _, row in rows] for i, name in enumerate(header)}


READ: Mapping[str, Callable[[bytes], dict[str, list[str]]]] = {".txt": _lines, ".csv": _csv}
