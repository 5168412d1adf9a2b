"""The function `find_items`, which finds the images in files, folders, patterns, lists, archives and addresses."""

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence

from ..errors import ArgumentError, shortened
from .archives import Tar, Zip
from .file_lists import Listed
from .filesystems import is_address
from .hf_datasets import DatasetImages
from .input_search import FoundSource, Input, Search, subset
from .parquet_source import Table
from .sources import TWICE, Broken, Files, Items, LeftOut, RemoteFiles, Source, Tally


class FileKeys:
    """Keys of files that are equal for all paths and links of one file."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def key(self, place: str) -> Hashable:
        """The address without leading slashes, or for a path a key of the file with links resolved.

        Hard links with different names are different files. The inode identifies files in case-insensitive systems.
        """
        scheme, _, rest = place.partition("://")
        if is_address(place) and scheme not in ("file", "local"):
            return f"{scheme}://{rest.lstrip('/')}"
        path, within = rest if is_address(place) else place, []
        while True:
            try:
                status = os.stat(path)
            except NotADirectoryError:  # within a tar or a table
                path, name = os.path.split(path)
                within.append(name)
            except (OSError, ValueError):
                return os.path.abspath(place)
            else:
                return self._real(path).casefold(), status.st_dev, status.st_ino, *within

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
    """Find all images in the inputs, without duplicates, in an order that depends only on their names.

    An input is a file, a folder (searched recursively), a pattern such as "photos/**/*.jpg", a list of paths (.txt with
    one per line, .csv or .parquet with a column "path" and perhaps "id"), "-" for such lines on standard input, a
    .parquet whose rows contain the images, an uncompressed .tar, a .zip, a folder that `datasets.save_to_disk` wrote,
    or an address that fsspec supports, such as "s3://bucket/photos". In a folder without image files, tars and tables
    are read, or else zips.

    Ids are paths relative to the input; with several inputs, they begin with the input as it was written. If one of
    several tars, zips and tables cannot be read, it is represented by a failed image.

    Args:
        inputs: one or several.
        column: of tables and datasets, with the images or their paths; None is the only suitable one.
        exclude: patterns of files to leave out of folders, patterns, lists and archives. A pattern without a slash is
            compared with the names of the file and of all its parent folders; one with a slash with the path below the
            input.
        out: the output folder, which is left out if it is inside an input, like all folders of maps.

    Returns:
        The images; their `left_out` lists the other files.

    Raises:
        ArgumentError: inputs do not exist (all are listed) or cannot be read, two images have the same id, no input has
            the column, or there are no images.
        MissingPackageError: an input needs a package that is not installed.
    """
    paths = [os.fspath(path) for path in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    search = Search(column, [exclude] if isinstance(exclude, str) else [*exclude], out)
    found = search.find_all(paths)
    if len(paths) > 1:
        found = list(_without_duplicates(found, search.tally))
    sources, left_out = [part.source for part in found], search.tally.left_out()
    if not any(len(source.names) for source in sources if not isinstance(source, Broken)):
        raise search.problem or ArgumentError(_no_images_message(paths, left_out))
    if column is not None and not any(isinstance(source, Listed | Table | DatasetImages) for source in sources):
        raise ArgumentError(f"column={column!r}: no input has columns; leave it out")
    prefixes = [part.input_prefix + part.file_prefix if len(paths) > 1 else part.file_prefix for part in found]
    return Items(sources, prefixes, column, left_out)


def _no_images_message(paths: Sequence[str], left_out: LeftOut) -> str:
    parts = [f"no image files in {', '.join(shortened(paths))}; images are known by endings such as .jpg"]
    if left_out.kinds:
        parts.append(f"left out: {left_out}")
    parts += shortened([f"{path}: {remark}" for path, remark in left_out.remarks.items()], 3)
    return "; ".join(parts)


def _without_duplicates(found: Sequence[FoundSource], tally: Tally) -> Iterator[FoundSource]:
    """The sources without images that an earlier source contains."""
    known: set[Hashable] = set()
    file_keys = FileKeys()
    for part in found:
        source = part.source
        keys = _keys(source, file_keys)
        if isinstance(source, Files | RemoteFiles | Listed):
            rows = [row for row, key in enumerate(keys) if key not in known]
            yield part if len(rows) == len(keys) else part._replace(source=subset(source, rows))
            tally.count(TWICE, len(keys) - len(rows))
        elif known.isdisjoint(keys):
            yield part
        elif known.issuperset(keys):
            tally.count(TWICE, len(keys))
        else:
            name = part.input_prefix.rstrip("/")
            raise ArgumentError(f"{name} holds images that another input has too: give each once")
        known.update(keys)


def _keys(source: Source, file_keys: FileKeys) -> list[Hashable]:
    """A key for each image of a source: of its file, and within an archive or table also its name."""
    if isinstance(source, Tar | Zip | Table):
        file = file_keys.key(source.path)
        return [(file, name) for name in source.names]
    return [file_keys.key(source.where(row)) for row in range(len(source.names))]
