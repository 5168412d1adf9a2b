"""From what a user names to the images in it: files, folders, patterns, lists, archives, datasets, addresses."""

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence

from ..errors import ArgumentError, shortened
from .archives import Tar, Zip
from .file_lists import Listed
from .filesystems import is_address
from .hf_datasets import DatasetImages
from .input_search import Found, Input, Search, only
from .parquet_source import Table
from .sources import TWICE, Broken, Files, Items, LeftOut, RemoteFiles, Source, Tally


class Places:
    """What tells where an image is: the same for every path and address of one file of this machine."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def of(self, place: str) -> Hashable:
        """An address as it is, but for slashes at its beginning; of a path what it is in the end, whoever links to it.

        Hard links of two names are two files. Where capitals make no difference, the file tells.
        """
        scheme, _, rest = place.partition("://")
        if is_address(place) and scheme not in ("file", "local"):
            return f"{scheme}://{rest.lstrip('/')}"
        path, within = rest if is_address(place) else place, []
        while True:
            try:
                told = os.stat(path)
            except NotADirectoryError:  # within a tar or a table
                path, name = os.path.split(path)
                within.append(name)
            except (OSError, ValueError):
                return os.path.abspath(place)
            else:
                return self._real(path).casefold(), told.st_dev, told.st_ino, *within

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def find_items(
    inputs: Input | Iterable[Input],
    column: str | None = None,
    *,
    exclude: str | Iterable[str] = (),
    out: Input | None = None,
) -> Items:
    """Every image in the inputs, each once, in an order that depends on their names alone.

    An input is a file, a folder (searched recursively), a pattern such as "photos/**/*.jpg", a list of paths (.txt with
    one a line, .csv or .parquet with a column "path" and perhaps "id"), "-" for such lines on standard input, a
    .parquet whose rows hold the images, an uncompressed .tar, a .zip, a folder that `datasets.save_to_disk` wrote, or
    an address that fsspec knows, such as "s3://bucket/photos". Of a folder without image files, tars and tables are
    read, and without any of these, zips.

    column: of tables and data sets, what holds the images or their paths; None is the one that can.
    exclude: patterns of files to leave out of folders, patterns, lists and archives. One without a slash is compared
        with the name of a file and of every folder that it is in; one with a slash with the path below the input.
    out: the folder that maps are written to, which is no input where it lies in one; nor is any other folder of maps.

    Ids are paths relative to the input; with several inputs they begin with the input as it was given. Of several
    tars, zips and tables, one that cannot be read is an image that fails. `left_out` of what is returned says what else
    was there.

    Raises ArgumentError naming every input that does not exist, for one that cannot be read, if two images would have
    the same id, for a column that no input has, or if there is no image. MissingPackageError if reading an input needs
    a package that is not there.
    """
    given = [os.fspath(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    search = Search(column, [exclude] if isinstance(exclude, str) else [*exclude], out)
    found = search.all_of(given)
    if len(given) > 1:
        found = list(_each_once(found, search.tally))
    left_out = search.tally.left_out()
    if not any(len(one.source.names) for one in found if not isinstance(one.source, Broken)):
        raise search.problem or ArgumentError(_without_images(given, left_out))
    if column is not None and not any(isinstance(one.source, Listed | Table | DatasetImages) for one in found):
        raise ArgumentError(f"column={column!r}: no input has columns; leave it out")
    prefixes = [one.given + one.file if len(given) > 1 else one.file for one in found]
    return Items([one.source for one in found], prefixes, column, left_out)


def _without_images(given: Sequence[str], left_out: LeftOut) -> str:
    told = [f"no image files in {', '.join(shortened(given))}; images are known by endings such as .jpg"]
    if left_out.kinds:
        told.append(f"left out: {left_out}")
    told += shortened([f"{path}: {remark}" for path, remark in left_out.remarks.items()], 3)
    return "; ".join(told)


def _each_once(found: Sequence[Found], tally: Tally) -> Iterator[Found]:
    """What names an image twice, by two inputs, names it once."""
    seen: set[Hashable] = set()
    places = Places()
    for one in found:
        source = one.source
        keys = _keys(source, places)
        if isinstance(source, Files | RemoteFiles | Listed):
            rows = [row for row, key in enumerate(keys) if key not in seen]
            yield one if len(rows) == len(keys) else one._replace(source=only(source, rows))
            tally.count(TWICE, len(keys) - len(rows))
        elif seen.isdisjoint(keys):
            yield one
        elif seen.issuperset(keys):
            tally.count(TWICE, len(keys))
        else:
            raise ArgumentError(f"{one.given.rstrip('/')} holds images that another input has too: give each once")
        seen.update(keys)


def _keys(source: Source, places: Places) -> list[Hashable]:
    """What tells where each image of a source is; of several in one file, beside the file, its name there."""
    if isinstance(source, Tar | Zip | Table):
        file = places.of(source.path)
        return [(file, name) for name in source.names]
    return [places.of(source.where(row)) for row in range(len(source.names))]
