"""The search of inputs for images, which counts what is none of them and leaves out what featx itself wrote."""

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
from .filesystems import is_address, listing, open_system
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

# "maps.npy" beside "maps", and what its writer calls it until it is whole
CONVERTED = re.compile(rf"\.?(.+?)\.(?:{'|'.join(get_args(Format))})(?:\..*part)?", re.DOTALL)
Input = str | os.PathLike[str]
PACKED = (*TARS, *TABLES)
# What a source has one of for every image.
PER_IMAGE: dict[type, tuple[str, ...]] = {
    Files: ("names",),
    RemoteFiles: ("names",),
    Listed: ("names", "places"),
    Tar: ("names", "offsets", "sizes"),
    Zip: ("names",),
}


class Found(NamedTuple):
    """A source, and what its ids begin with: `given` if it is of one input of several, then `file` likewise."""

    source: Source
    given: str
    file: str = ""


class Search:
    """Looks for the images in inputs.

    tally: of what is none. problem: the first tar, zip or table without images, which matters if there is no image
    elsewhere.
    """

    def __init__(self, column: str | None, exclude: Sequence[str], out: Input | None) -> None:
        if not all(exclude):
            raise ArgumentError("exclude has an empty pattern: expected some such as '*.gif' or 'thumbnails'")
        self._column, self._exclude = column, exclude
        self._outputs = Outputs(out)
        self.tally = Tally()
        self.problem: ArgumentError | None = None

    def all_of(self, given: Sequence[str]) -> list[Found]:
        """What is found in each of these inputs. ArgumentError for those that do not exist or cannot be read."""
        local = [one for one in given if not is_address(one) and one != STDIN]
        matches = {one: matching(one, self.tally.tell) for one in local if has_magic(one) and not os.path.lexists(one)}
        absent = [one for one in local if one not in matches and not os.path.exists(one)]
        absent += [one for one, matched in matches.items() if not matched]
        if absent:
            raise ArgumentError(f"no such file or folder: {', '.join(shortened(absent))}")
        found: list[Found] = []
        for one in dict.fromkeys(given):
            if is_address(one):
                found += self._remote(one)
            elif one == STDIN:
                found.append(Found(self._kept(listed_in_stdin(self.tally)), f"{STDIN}/"))
            elif one in matches:
                found += self._matched(one, matches[one])
            else:
                found += self._folder(one) if os.path.isdir(one) else self._file(one)
        return found

    def _folder(self, path: str) -> list[Found]:
        folder = os.path.join(path, "")
        if is_dataset(path):
            return [Found(dataset_images(path, self._column), folder)]
        if are_maps(path):
            raise ArgumentError(
                f"{path} holds maps that featx wrote, and no images: name a folder of images, or index.parquet in it "
                "for the images that the maps were made of"
            )
        try:
            os.scandir(path).close()
        except OSError as error:
            raise ArgumentError(f"cannot look into {path}: {error.strerror}") from error
        below = walked(path, self.tally.tell, partial(self._skip, len(folder)))
        names = sorted(below, key=lambda name: name.split(os.sep))
        return self._among(*self._chosen(names), folder, partial(Files, folder), str)

    def _skip(self, start: int, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry of a folder is not looked at; `start` is where its relative path begins."""
        name, folder = entry.path[start:].replace(os.sep, "/"), is_folder(entry)
        return self._is_skipped(f"{name}/" if folder else name) or self._is_output(
            self._outputs.has(entry.path, folder)
        )

    def _is_skipped(self, name: str) -> bool:
        """Whether a relative path is of no image by its name, which is counted."""
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

    def _kept(self, source: Source) -> Source:
        """Without what is excluded."""
        if not self._exclude or type(source) not in PER_IMAGE:
            return source
        names = source.places if isinstance(source, Listed) else source.names
        rows = [row for row, name in enumerate(names) if not self._is_excluded(name)]
        self.tally.count(EXCLUDED, len(names) - len(rows))
        return only(source, rows)

    def _file(self, path: str) -> list[Found]:
        ending, folder = ending_of(path), os.path.join(os.path.dirname(path), "")
        if ending in COMPRESSED:
            raise ArgumentError(
                f"{path} is compressed as a whole, so that no image in it can be read alone: unpack it, or pack the "
                "images as .tar or .zip"
            )
        if is_index(path) and self._outputs.is_out(folder):
            raise ArgumentError(f"{path} is written by this run: name another folder for the maps")
        if ending in LISTS:
            return [Found(self._kept(listed_images(path, self.tally, self._column)), f"{path}/")]
        if ending not in (*PACKED, *ZIPS):
            return [Found(Files(folder, [os.path.basename(path)]), folder)]
        return self._container(path, path)

    def _container(self, path: str, given: str) -> list[Found]:
        """What a tar, zip or table that was named itself holds; what was lost of it fails."""
        source = self._unbroken(path, path.rpartition("/")[2])
        folder = given[: given.rfind("/") + 1] if is_address(given) else os.path.join(os.path.dirname(given), "")
        whole = [] if isinstance(source, Broken) else [Found(source, f"{given}/")]
        return [*whole, *(Found(lost, folder) for lost in _lost(source, os.path.basename(path)))]

    def _unbroken(self, path: str, name: str) -> Source:
        """A tar, zip or table; Broken under this name if it cannot be read."""
        try:
            return self._read(path)
        except UnreadableError as error:
            self.problem = self.problem or error
            return Broken(path, [name], str(error))

    def _read(self, path: str) -> Source:
        ending = ending_of(path)
        if ending in TABLES:
            return self._kept(table_images(path, self.tally, self._column))
        return self._kept((tar_images if ending in TARS else zip_images)(path, self.tally))

    def _chosen(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The image files of a folder, or, without any, the tars and tables, or, without these, the zips."""
        suffixes = image_suffixes()
        images = [name for name in names if ending_of(name) in suffixes]
        packed = [] if images else [name for name in names if ending_of(name) in PACKED]
        if not images and not packed:
            packed = [name for name in names if ending_of(name) in ZIPS]
        self._count_others(names, images, packed)
        return images, packed

    def _count_others(self, names: Iterable[str], *chosen: Iterable[str]) -> None:
        taken = {name for some in chosen for name in some}
        for name in names:
            if name not in taken:
                self.tally.count_file(name)

    def _matched(self, pattern: str, paths: Sequence[str]) -> list[Found]:
        root = fixed_part(pattern)
        names: list[str] = []
        for path in paths:
            name = path[len(root) :]
            if os.path.isdir(path):
                self.tally.count(FOLDERS, "**" not in pattern)
            elif not os.path.isfile(path):
                self.tally.tell(path, "matches the pattern and is no file")
            elif not self._is_skipped(name.replace(os.sep, "/")) and not self._is_output(
                self._outputs.hold(path, root)
            ):
                names.append(name)
        return self._among(*self._named(names), root, partial(Files, root), str)

    def _named(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The images and tars among the files that match, without any the tables or zips, without those whatever."""
        suffixes = image_suffixes()
        images = [name for name in names if ending_of(name) in suffixes]
        packed = [name for name in names if ending_of(name) in (TARS if images else PACKED)]
        if not images and not packed:
            packed = [name for name in names if ending_of(name) in ZIPS]
        if not images and not packed:
            images = [name for name in names if ending_of(name) not in COMPRESSED]
        self._count_others(names, images, packed)
        return images, packed

    def _among(
        self,
        images: Sequence[str],
        packed: Sequence[str],
        root: str,
        files: Callable[[Sequence[str]], Source],
        whole: Callable[[str], str],
    ) -> list[Found]:
        """Image files and the files that images are packed in, by their names below the root."""
        found = [Found(files(images), root)] if images else []
        sources = {name: self._packed(name, whole(root + name), packed) for name in packed}
        sources = {name: source for name, source in sources.items() if source is not None}
        for name, source in sources.items():
            if not isinstance(source, Broken):
                found.append(Found(source, root, f"{name}/" if len(sources) > 1 else ""))
            found += (Found(lost, root) for lost in _lost(source, name))
        return found

    def _packed(self, name: str, path: str, packed: Sequence[str]) -> Source | None:
        """What one of several files holds; None for a table without images, such as img2dataset leaves by its tars."""
        by_tar = ending_of(name) in TABLES and f"{name[: -len(ending_of(name))]}.tar" in packed
        try:
            if not (by_tar and is_metadata(path)):
                return self._unbroken(path, name)
        except NoImagesError as error:
            self.problem = self.problem or error
        except UnreadableError as error:
            self.tally.tell(path, str(error))
            return None
        self.tally.count(NO_IMAGES)
        return None

    def _remote(self, address: str) -> list[Found]:
        system, path = open_system(address)
        if has_magic(path):
            root, found, choose = fixed_part(path), listing(address, system.glob, path), self._named
        elif listing(address, system.isdir, path):
            root, found, choose = path.rstrip("/") + "/", listing(address, system.find, path), self._chosen
        elif not listing(address, system.exists, path):
            raise ArgumentError(f"no such file or folder: {address}")
        else:
            return self._remote_file(system, path, address)
        names = [path[len(root) :] for path in sorted(found)]
        images, packed = choose([name for name in names if not self._is_skipped_there(system, root, name)])
        among = self._among(images, packed, root, partial(RemoteFiles, system, root), system.unstrip_protocol)
        return [one._replace(given=_address_of(system, root)) for one in among]

    def _is_skipped_there(self, system: Any, root: str, name: str) -> bool:
        if self._is_skipped(name):
            return True
        folder = (root + name).rpartition("/")[0]
        return is_index(name) and self._is_output(are_maps(system.unstrip_protocol(folder)))

    def _remote_file(self, system: Any, path: str, address: str) -> list[Found]:
        ending, root = ending_of(path), path[: path.rfind("/") + 1]
        if ending in LISTS:
            return [Found(self._kept(listed_images(address, self.tally, self._column)), f"{address}/")]
        if ending in (*PACKED, *ZIPS):
            return self._container(address, address)
        return [Found(RemoteFiles(system, root, [path[len(root) :]]), _address_of(system, root))]


def only(source: Source, rows: Sequence[int]) -> Source:
    """These images of a source whose type has an entry in PER_IMAGE."""
    columns: dict[str, Any] = {name: [getattr(source, name)[row] for row in rows] for name in PER_IMAGE[type(source)]}
    return replace(source, **columns)  # pyright: ignore


def _lost(source: Source, name: str) -> list[Broken]:
    """What could not be read of a file of images, as an image that fails under the file's name."""
    if isinstance(source, Broken):
        return [source]
    return [Broken(source.path, [name], source.lost)] if isinstance(source, Tar) and source.lost else []


def _address_of(system: Any, folder: str) -> str:
    """The address of a folder, with a slash at its end, which some file systems take away."""
    address = system.unstrip_protocol(folder)
    return address if address.endswith("/") else f"{address}/"


class Outputs:
    """Knows the folder that maps go to, which need not exist yet, and every other folder of maps by what is in it."""

    def __init__(self, out: str | os.PathLike[str] | None) -> None:
        self._out = None if out is None else os.path.realpath(out)
        self._known: dict[str, bool] = {}

    def is_out(self, folder: str) -> bool:
        """Whether it is the folder that maps go to."""
        return self._out is not None and os.path.realpath(folder) == self._out

    def has(self, path: str, is_folder: bool = True) -> bool:
        """Whether a path of this machine is a folder of maps, or is named as their conversion and lies beside them."""
        if is_folder and self._are_maps(path):
            return True
        folder, name = os.path.split(path)
        converted = CONVERTED.fullmatch(name)
        return converted is not None and self._are_maps(os.path.join(folder, converted[1]))

    def hold(self, path: str, root: str) -> bool:
        """Whether a file, or a folder that it is in below the root, is one of these."""
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
    """Whether a folder of this machine, or at an address, is one of maps, whole or damaged."""
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
    """Whether a file has the name of the table of a folder of maps."""
    return name.rpartition("/")[2] == INDEX
