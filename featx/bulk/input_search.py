"""The search for images in inputs, which counts other files and leaves out the outputs of featx."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from glob import has_magic
from typing import Any, NamedTuple, get_args

from ..errors import ArgumentError, OutputError, shortened
from ..images import image_suffixes
from ..walk import fits, fixed_part, is_folder, is_sidecar, matching, walked
from .archives import TARS, ZIPS, Tar, Zip, tar_images, zip_images
from .converters import Format
from .file_lists import LISTS, STDIN, Listed, listed_images, listed_in_stdin
from .filesystems import is_address, open_system, query_system
from .hf_datasets import dataset_images, is_dataset
from .meta import read_meta
from .output_folder import INDEX, shards_in
from .parquet_source import TABLES, is_metadata, table_images
from .sources import (
    COMPRESSED,
    EXCLUDED,
    FOLDERS,
    NO_IMAGES,
    OUTPUT,
    SIDECAR,
    Broken,
    Files,
    NoImagesError,
    RemoteFiles,
    Source,
    Tally,
    UnreadableError,
    ending_of,
)

# "maps.npy" beside "maps", and its partial file
CONVERTED = re.compile(rf"\.?(.+?)\.(?:{'|'.join(get_args(Format))})(?:\..*part)?", re.DOTALL)
Input = str | os.PathLike[str]
PACKED = (*TARS, *TABLES)
# Attributes of sources with one value per image.
PER_IMAGE: dict[type, tuple[str, ...]] = {
    Files: ("names",),
    RemoteFiles: ("names",),
    Listed: ("names", "places"),
    Tar: ("names", "offsets", "sizes"),
    Zip: ("names",),
}


class FoundSource(NamedTuple):
    """A source and the prefixes of its ids: of the input, used with several inputs, and of the file in an input."""

    source: Source
    input_prefix: str
    file_prefix: str = ""


class Search:
    """Searches inputs for images.

    Attributes:
        tally: of files that are not images.
        problem: the error for the first tar, zip or table without images, raised if there are no images at all.
    """

    def __init__(self, column: str | None, exclude: Sequence[str], out: Input | None) -> None:
        if not all(exclude):
            raise ArgumentError("exclude has an empty pattern: expected some such as '*.gif' or 'thumbnails'")
        self._column, self._exclude = column, exclude
        self._outputs = Outputs(out)
        self.tally = Tally()
        self.problem: ArgumentError | None = None

    def find_all(self, inputs: Sequence[str]) -> list[FoundSource]:
        """The sources in all inputs; ArgumentError if inputs do not exist or cannot be read."""
        local = [path for path in inputs if not is_address(path) and path != STDIN]
        patterns = [path for path in local if has_magic(path) and not os.path.lexists(path)]
        matches = {pattern: matching(pattern, self.tally.add_remark) for pattern in patterns}
        absent = [path for path in local if path not in matches and not os.path.exists(path)]
        absent += [pattern for pattern, matched in matches.items() if not matched]
        if absent:
            raise ArgumentError(f"no such file or folder: {', '.join(shortened(absent))}")
        found: list[FoundSource] = []
        for path in dict.fromkeys(inputs):
            if is_address(path):
                found += self._remote(path)
            elif path == STDIN:
                found.append(FoundSource(self._without_excluded(listed_in_stdin(self.tally)), f"{STDIN}/"))
            elif path in matches:
                found += self._matched(path, matches[path])
            else:
                found += self._folder(path) if os.path.isdir(path) else self._file(path)
        return found

    def _folder(self, path: str) -> list[FoundSource]:
        folder = os.path.join(path, "")
        if is_dataset(path):
            return [FoundSource(dataset_images(path, self._column), folder)]
        if are_maps(path):
            raise ArgumentError(
                f"{path} holds maps that featx wrote, and no images: name a folder of images, or index.parquet in it "
                "for the images that the maps were made of"
            )
        try:
            os.scandir(path).close()
        except OSError as error:
            raise ArgumentError(f"cannot look into {path}: {error.strerror}") from error
        below = walked(path, self.tally.add_remark, partial(self._skip, len(folder)))
        names = sorted(below, key=lambda name: name.split(os.sep))
        return self._sources(*self._select_in_folder(names), folder, partial(Files, folder), str)

    def _skip(self, start: int, entry: "os.DirEntry[str]") -> bool:
        """Whether to skip an entry of a folder; its relative path begins at `start`."""
        name, folder = entry.path[start:].replace(os.sep, "/"), is_folder(entry)
        return self._is_skipped(f"{name}/" if folder else name) or self._is_output(
            self._outputs.has(entry.path, folder)
        )

    def _is_skipped(self, name: str) -> bool:
        """Whether a relative path is excluded or a sidecar file, which is counted."""
        if is_sidecar(name):
            self.tally.count(SIDECAR)
        elif self._is_excluded(name.rstrip("/")):
            self.tally.count(EXCLUDED)
        else:
            return False
        return True

    def _is_output(self, found: bool) -> bool:
        self.tally.count(OUTPUT, int(found))
        return found

    def _is_excluded(self, name: str) -> bool:
        return any(fits(name, pattern) for pattern in self._exclude)

    def _without_excluded(self, source: Source) -> Source:
        """The source without excluded images, which are counted."""
        if not self._exclude or type(source) not in PER_IMAGE:
            return source
        names = source.places if isinstance(source, Listed) else source.names
        rows = [row for row, name in enumerate(names) if not self._is_excluded(name)]
        self.tally.count(EXCLUDED, len(names) - len(rows))
        return subset(source, rows)

    def _file(self, path: str) -> list[FoundSource]:
        ending, folder = ending_of(path), os.path.join(os.path.dirname(path), "")
        if ending in COMPRESSED:
            raise ArgumentError(
                f"{path} is compressed as a whole, so that no image in it can be read alone: unpack it, or pack the "
                "images as .tar or .zip"
            )
        if is_index(path) and self._outputs.is_out(folder):
            raise ArgumentError(f"{path} is written by this run: name another folder for the maps")
        if ending in LISTS:
            return [FoundSource(self._without_excluded(listed_images(path, self.tally, self._column)), f"{path}/")]
        if ending not in (*PACKED, *ZIPS):
            return [FoundSource(Files(folder, [os.path.basename(path)]), folder)]
        return self._container(path, path)

    def _container(self, path: str, given: str) -> list[FoundSource]:
        """The images of a tar, zip or table that is an input; its unreadable part is a failed image."""
        source = self._read_or_broken(path, path.rpartition("/")[2])
        folder = given[: given.rfind("/") + 1] if is_address(given) else os.path.join(os.path.dirname(given), "")
        readable = [] if isinstance(source, Broken) else [FoundSource(source, f"{given}/")]
        return [*readable, *(FoundSource(broken, folder) for broken in _broken_part(source, os.path.basename(path)))]

    def _read_or_broken(self, path: str, name: str) -> Source:
        """A tar, zip or table; or a Broken with this name if it cannot be read."""
        try:
            return self._read(path)
        except UnreadableError as error:
            self.problem = self.problem or error
            return Broken(path, [name], str(error))

    def _read(self, path: str) -> Source:
        ending = ending_of(path)
        if ending in TABLES:
            return self._without_excluded(table_images(path, self.tally, self._column))
        return self._without_excluded((tar_images if ending in TARS else zip_images)(path, self.tally))

    def _select_in_folder(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The image files of a folder, or else its tars and tables, or else its zips."""
        suffixes = image_suffixes()
        images = [name for name in names if ending_of(name) in suffixes]
        packed = [] if images else [name for name in names if ending_of(name) in PACKED]
        if not images and not packed:
            packed = [name for name in names if ending_of(name) in ZIPS]
        self._count_others(names, images, packed)
        return images, packed

    def _count_others(self, names: Iterable[str], *selections: Iterable[str]) -> None:
        selected = {name for selection in selections for name in selection}
        for name in names:
            if name not in selected:
                self.tally.count_file(name)

    def _matched(self, pattern: str, paths: Sequence[str]) -> list[FoundSource]:
        root = fixed_part(pattern)
        names: list[str] = []
        for path in paths:
            name = path[len(root) :]
            if os.path.isdir(path):
                self.tally.count(FOLDERS, "**" not in pattern)
            elif not os.path.isfile(path):
                self.tally.add_remark(path, "matches the pattern but is not a file")
            elif not self._is_skipped(name.replace(os.sep, "/")) and not self._is_output(
                self._outputs.contain(path, root)
            ):
                names.append(name)
        return self._sources(*self._select_matches(names), root, partial(Files, root), str)

    def _select_matches(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The images and tars of the matching files, or else tars and tables, or else zips, or else all files."""
        suffixes = image_suffixes()
        images = [name for name in names if ending_of(name) in suffixes]
        packed = [name for name in names if ending_of(name) in (TARS if images else PACKED)]
        if not images and not packed:
            packed = [name for name in names if ending_of(name) in ZIPS]
        if not images and not packed:
            images = [name for name in names if ending_of(name) not in COMPRESSED]
        self._count_others(names, images, packed)
        return images, packed

    def _sources(
        self,
        images: Sequence[str],
        packed: Sequence[str],
        root: str,
        files: Callable[[Sequence[str]], Source],
        full_path: Callable[[str], str],
    ) -> list[FoundSource]:
        """The sources of image files and of archives and tables, given by their names below the root."""
        found = [FoundSource(files(images), root)] if images else []
        sources = {name: self._packed(name, full_path(root + name), packed) for name in packed}
        sources = {name: source for name, source in sources.items() if source is not None}
        for name, source in sources.items():
            if not isinstance(source, Broken):
                found.append(FoundSource(source, root, f"{name}/" if len(sources) > 1 else ""))
            found += (FoundSource(broken, root) for broken in _broken_part(source, name))
        return found

    def _packed(self, name: str, path: str, packed: Sequence[str]) -> Source | None:
        """The images in one of several files; None for a table without images, such as those of img2dataset."""
        by_tar = ending_of(name) in TABLES and f"{name[: -len(ending_of(name))]}.tar" in packed
        try:
            if not (by_tar and is_metadata(path)):
                return self._read_or_broken(path, name)
        except NoImagesError as error:
            self.problem = self.problem or error
        except UnreadableError as error:
            self.tally.add_remark(path, str(error))
            return None
        self.tally.count(NO_IMAGES)
        return None

    def _remote(self, address: str) -> list[FoundSource]:
        system, path = open_system(address)
        if has_magic(path):
            root, paths, select = fixed_part(path), query_system(address, system.glob, path), self._select_matches
        elif query_system(address, system.isdir, path):
            root, paths = path.rstrip("/") + "/", query_system(address, system.find, path)
            select = self._select_in_folder
        elif not query_system(address, system.exists, path):
            raise ArgumentError(f"no such file or folder: {address}")
        else:
            return self._remote_file(system, path, address)
        names = [path[len(root) :] for path in sorted(paths)]
        images, packed = select([name for name in names if not self._is_skipped_there(system, root, name)])
        found = self._sources(images, packed, root, partial(RemoteFiles, system, root), system.unstrip_protocol)
        return [part._replace(input_prefix=_address_of(system, root)) for part in found]

    def _is_skipped_there(self, system: Any, root: str, name: str) -> bool:
        if self._is_skipped(name):
            return True
        folder = (root + name).rpartition("/")[0]
        return is_index(name) and self._is_output(are_maps(system.unstrip_protocol(folder)))

    def _remote_file(self, system: Any, path: str, address: str) -> list[FoundSource]:
        ending, root = ending_of(path), path[: path.rfind("/") + 1]
        if ending in LISTS:
            source = self._without_excluded(listed_images(address, self.tally, self._column))
            return [FoundSource(source, f"{address}/")]
        if ending in (*PACKED, *ZIPS):
            return self._container(address, address)
        return [FoundSource(RemoteFiles(system, root, [path[len(root) :]]), _address_of(system, root))]


def subset(source: Source, rows: Sequence[int]) -> Source:
    """A source of these images; the type of the source has an entry in PER_IMAGE."""
    columns: dict[str, Any] = {name: [getattr(source, name)[row] for row in rows] for name in PER_IMAGE[type(source)]}
    return replace(source, **columns)  # pyright: ignore


def _broken_part(source: Source, name: str) -> list[Broken]:
    """The unreadable part of an archive or table, if any, as an image that fails under the file's name."""
    if isinstance(source, Broken):
        return [source]
    return [Broken(source.path, [name], source.lost)] if isinstance(source, Tar) and source.lost else []


def _address_of(system: Any, folder: str) -> str:
    """The address of a folder with a trailing slash, which some file systems remove."""
    address = system.unstrip_protocol(folder)
    return address if address.endswith("/") else f"{address}/"


class Outputs:
    """Recognizes outputs: the output folder of this run, which may not exist yet, and other folders of maps."""

    def __init__(self, out: str | os.PathLike[str] | None) -> None:
        self._out = None if out is None else os.path.realpath(out)
        self._known: dict[str, bool] = {}

    def is_out(self, folder: str) -> bool:
        """Whether it is the output folder of this run."""
        return self._out is not None and os.path.realpath(folder) == self._out

    def has(self, path: str, is_folder: bool = True) -> bool:
        """Whether a local path is a folder of maps, or has the name of its conversion and is beside it."""
        if is_folder and self._are_maps(path):
            return True
        folder, name = os.path.split(path)
        converted = CONVERTED.fullmatch(name)
        return converted is not None and self._are_maps(os.path.join(folder, converted[1]))

    def contain(self, path: str, root: str) -> bool:
        """Whether a file, or one of its parent folders below the root, is an output."""
        is_folder = False
        while len(path) > len(root):
            if self.has(path, is_folder):
                return True
            path, is_folder = os.path.dirname(path), True
        return False

    def _are_maps(self, path: str) -> bool:
        if path not in self._known:
            same_name = self._out is not None and os.path.basename(path) == os.path.basename(self._out)
            is_out = same_name and self.is_out(path)
            self._known[path] = is_out or (os.path.isdir(path) and are_maps(path))
        return self._known[path]


def are_maps(folder: str) -> bool:
    """Whether a local folder, or one at an address, has maps, complete or damaged."""
    try:
        return read_meta(folder) is not None
    except OutputError:  # another program's meta.json, a damaged one, or a folder that cannot be read
        return not is_address(folder) and _has_shards(folder)


def _has_shards(folder: str) -> bool:
    try:
        return bool(shards_in(folder))
    except OutputError:
        return False


def is_index(name: str) -> bool:
    """Whether a file has the name of the index of a folder of maps."""
    return name.rpartition("/")[2] == INDEX
