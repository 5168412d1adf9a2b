"""From what a user names to the images in it: files, folders, patterns, lists, tars, datasets, addresses."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from glob import glob, has_magic
from os.path import splitext
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ..images import files_below, image_suffixes
from .datasets import DatasetImages, dataset_images, is_dataset
from .lists import LISTS, Listed, listed_images
from .sources import Files, Items, RemoteFiles, Source
from .systems import is_address, open_system
from .tables import TABLES, Table, table_images
from .tars import TARS, tar_images

Input = str | os.PathLike[str]


class Found(NamedTuple):
    """A source, and what its ids begin with: `given` if it is of one input of several, then `file` likewise."""

    source: Source
    given: str
    file: str = ""


def find_items(inputs: Input | Iterable[Input], column: str | None = None) -> Items:
    """Every image in the inputs, each once, in an order that depends on their names alone.

    An input is a file, a folder (searched recursively), a pattern such as "photos/**/*.jpg", a list of paths (.txt with
    one a line, .csv or .parquet with a column "path" and perhaps "id"), a .parquet whose rows hold the images, an
    uncompressed .tar, a folder that `datasets.save_to_disk` wrote, or an address that fsspec knows, such as
    "s3://bucket/photos". Of a folder without image files, tars and tables are read.

    column: of tables and data sets, what holds the images or their paths; None is the one that can.

    Ids are paths relative to the input; with several inputs they begin with the input as it was given.

    Raises ArgumentError naming every input that does not exist, for one that cannot be read, if two images would have
    the same id, for a column that no input has, or if there is no image. MissingPackageError if reading an input needs
    a package that is not there.
    """
    given = [os.fspath(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    found = _expand(given, column)
    if column is not None and not any(isinstance(one.source, Listed | Table | DatasetImages) for one in found):
        raise ArgumentError(f"column={column!r}: no input has columns; leave it out")
    if len(given) > 1:
        found = list(_each_once(found))
    if not any(len(one.source.names) for one in found):
        raise ArgumentError(f"no image files in {', '.join(given)}; images are known by endings such as .jpg")
    prefixes = [one.given + one.file if len(given) > 1 else one.file for one in found]
    return Items([one.source for one in found], prefixes, column)


def _expand(given: Sequence[str], column: str | None) -> list[Found]:
    local = [one for one in given if not is_address(one)]
    matches = {one: _matching(one) for one in local if has_magic(one) and not os.path.lexists(one)}
    absent = [one for one in local if one not in matches and not os.path.exists(one)]
    absent += [one for one, matched in matches.items() if not matched]
    if absent:
        raise ArgumentError(f"no such file or folder: {', '.join(absent)}")
    found: list[Found] = []
    for one in given:
        if is_address(one):
            found += _remote(one, column)
        elif one in matches:
            found += _matched(matches[one], _fixed_part(one), column)
        else:
            found += _one(one, column)
    return found


def _one(path: str, column: str | None) -> list[Found]:
    if os.path.isdir(path):
        folder = os.path.join(path, "")
        if is_dataset(path):
            return [Found(dataset_images(path, column), folder)]
        below = files_below(path, {*image_suffixes(), *TARS, *TABLES})
        return _among(*_chosen(below), folder, partial(Files, folder), str, column)
    read = _reader(path, column)
    if read is not None:
        return [Found(read(path), f"{path}/")]
    folder = os.path.join(os.path.dirname(path), "")
    return [Found(Files(folder, [os.path.basename(path)]), folder)]


def _reader(path: str, column: str | None) -> Callable[[str], Source] | None:
    """What finds the images that a file holds or names; None for what is taken for an image."""
    readers: dict[tuple[str, ...], Callable[[str], Source]] = {
        TARS: tar_images,
        LISTS: partial(listed_images, column=column),
        TABLES: partial(table_images, column=column),
    }
    return next((read for endings, read in readers.items() if _ending(path) in endings), None)


def _ending(path: str) -> str:
    return splitext(path)[1].lower()


def _matching(pattern: str) -> list[str]:
    return sorted(glob(pattern, recursive=True, include_hidden=True))


def _fixed_part(pattern: str) -> str:
    """The folders before the first wildcard, with a separator at the end unless there are none."""
    parts = Path(pattern).parts
    fixed = parts[: next(i for i, part in enumerate(parts) if has_magic(part))]
    return os.path.join(*fixed, "") if fixed else ""


def _chosen(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The image files of a folder, or, without any, the tars and tables."""
    images = [name for name in names if _ending(name) in image_suffixes()]
    return images, [] if images else [name for name in names if _ending(name) in (*TARS, *TABLES)]


def _matched(paths: Sequence[str], root: str, column: str | None) -> list[Found]:
    """The images and tars among the files that match, without any the tables, and without those whatever matches."""
    names = [path[len(root) :] for path in paths if os.path.isfile(path)]
    return _among(*_named(names), root, partial(Files, root), str, column)


def _named(names: Sequence[str]) -> tuple[list[str], list[str]]:
    images, packed = _chosen(names)
    packed = packed or [name for name in names if _ending(name) in TARS]
    return images if images or packed else list(names), packed


def _among(
    images: Sequence[str],
    packed: Sequence[str],
    root: str,
    files: Callable[[Sequence[str]], Source],
    whole: Callable[[str], str],
    column: str | None,
) -> list[Found]:
    """Image files and the files that images are packed in, by their names below the root."""
    found = [Found(files(images), root)] if images else []
    for name in packed:
        read = _reader(name, column)
        assert read is not None
        found.append(Found(read(whole(root + name)), root, f"{name}/" if len(packed) > 1 else ""))
    return found


def _remote(address: str, column: str | None) -> list[Found]:
    system, path = open_system(address)
    if has_magic(path):
        root, found, choose = _fixed_part(path), system.glob(path), _named
    elif system.isdir(path):
        root, found, choose = path.rstrip("/") + "/", system.find(path), _chosen
    elif not system.exists(path):
        raise ArgumentError(f"no such file or folder: {address}")
    else:
        read = _reader(path, column)
        if read is not None:
            return [Found(read(address), f"{address}/")]
        root = path[: path.rfind("/") + 1]
        return [Found(RemoteFiles(system, root, [path[len(root) :]]), _address_of(system, root))]
    images, packed = choose([path[len(root) :] for path in sorted(found)])
    found = _among(images, packed, root, partial(RemoteFiles, system, root), system.unstrip_protocol, column)
    return [one._replace(given=_address_of(system, root)) for one in found]


def _address_of(system: Any, folder: str) -> str:
    """The address of a folder, with a slash at its end, which some file systems take away."""
    address = system.unstrip_protocol(folder)
    return address if address.endswith("/") else f"{address}/"


def _each_once(found: Sequence[Found]) -> Iterator[Found]:
    """What names an image twice, by two inputs, names it once."""
    seen: set[str] = set()
    for one in found:
        source = one.source
        places = [source.where(i) for i in range(len(source.names))]
        if seen.isdisjoint(places):
            yield one
        elif isinstance(source, Files | RemoteFiles):
            names = [name for name, place in zip(source.names, places, strict=True) if place not in seen]
            yield one._replace(source=replace(source, names=names))
        elif not seen.issuperset(places):
            raise ArgumentError(f"{one.given.rstrip('/')} holds images that another input has too: give each once")
        seen.update(places)
