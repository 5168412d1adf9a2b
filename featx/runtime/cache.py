"""A folder of graphs that were built and runtimes that were chosen, so that later processes need not.

An entry is a folder, named by a SHA-256 of all that decides what is in it, with files of data and `entry.json`, which
has their digests. Entries appear whole. One that is damaged, or not of its key, is not there for whoever looks it up.
"""

import json
import os
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from ..errors import ArgumentError, OutputError
from ..json_checks import JsonError, parsed
from ..whole_files import alone, workspace

MOST_BYTES = 5 * 2**30  # of a cache; the entries that were used least recently go first
SECONDS = 600.0  # to wait for a process that builds the same
ENTRY = "entry.json"
FILES = ("model.onnx", "model.onnx.data", "model.blob", "facts.json")  # that entries may have
Place = bool | str | os.PathLike[str] | None


class OwnFolder:
    """A new folder that is removed when nothing holds this any more, or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="featx-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def default_folder() -> Path:
    """The environment's FEATX_CACHE, or else `featx` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if named := os.environ.get("FEATX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featx"


def cache_at(place: Place) -> "Cache | None":
    """The cache that an argument `cache=` names: None and True the default one, False none, a path a folder's.

    Raises:
        ArgumentError: it is none of these.
    """
    if place is False:
        return None
    if place is None or place is True:
        return Cache(default_folder() / "runtimes")
    if not isinstance(place, str | os.PathLike):
        raise ArgumentError(f"cache={place!r}: expected a folder, True for the default one, or False for none")
    return Cache(Path(place), is_named=True)


def clear_cache(cache: Place = None) -> int:
    """Remove what `optimize` has kept in a cache, and nothing else in its folder.

    Args:
        cache: a folder; None is the default one.

    Returns:
        The number of entries that were removed.

    Raises:
        ArgumentError: `cache` names no folder.
        OutputError: an entry cannot be removed.
    """
    found = cache_at(cache)
    if found is None:
        raise ArgumentError("cache=False: expected a folder, or None for the default one")
    return found.clear()


@dataclass(frozen=True, slots=True)
class Cache:
    """Entries in a folder. is_named: whether the user named it, so that it must be possible to write there."""

    folder: Path
    is_named: bool = False

    def find(self, key: str) -> OwnFolder | None:
        """A folder with the files of an entry, which stay although the entry goes; None if there is no whole one."""
        entry = self.folder / key
        try:
            said = parsed((entry / ENTRY).read_bytes())
            digests = {name: said["sha256"][name].text() for name in FILES if name in said["sha256"].object()}
            if said["key"].text() != key or not digests:
                return None
            own = OwnFolder()
            for name, digest in digests.items():
                _link(entry / name, own.path / name)
                if _sha256(own.path / name) != digest:
                    return None
        except (OSError, JsonError):  # no entry, one that is just removed, or a damaged one
            return None
        with suppress(OSError):  # a cache that may only be read
            os.utime(entry)
        return own

    @contextmanager
    def reserved(self, key: str) -> Iterator[None]:
        """Within the block no other process or thread builds the entry, if the folder can be written.

        Raises:
            OutputError: the user named the folder, and it cannot be written.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self.folder / key, SECONDS))
            except OutputError as error:
                self._refuse(error)
            yield

    def keep(self, key: str, folder: Path) -> None:
        """Make the files of a folder the entry of a key, in place of one that is damaged.

        Raises:
            OutputError: the user named the cache's folder, and it cannot be written.
        """
        entry = self.folder / key
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with workspace(entry) as part:
                names = [name for name in FILES if (folder / name).exists()]
                for name in names:
                    shutil.copyfile(folder / name, part / name)
                digests = {name: _sha256(part / name) for name in names}
                (part / ENTRY).write_text(json.dumps({"key": key, "sha256": digests}))
                _remove(entry)
                part.rename(entry)
            self._shrink(entry)
        except OSError as error:
            self._refuse(error)

    def clear(self) -> int:
        """Remove every entry, and say how many there were."""
        entries = self._entries()
        try:
            for entry in entries:
                _remove(entry)
        except OSError as error:
            raise OutputError(f"cannot remove what is in {self.folder}: {error}") from error
        return len(entries)

    def _shrink(self, latest: Path) -> None:
        """Remove the entries that were used least recently, but for the latest, until the others fit."""
        sizes = {entry: _bytes_of(entry) for entry in self._entries()}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=_last_use):
            if total <= MOST_BYTES:
                return
            if entry != latest:
                _remove(entry)
                total -= sizes[entry]

    def _entries(self) -> list[Path]:
        """The folders that are entries, by their names and what is in them."""
        named = [path for path in self.folder.glob("*") if re.fullmatch("[0-9a-f]{64}", path.name)]
        return [path for path in named if (path / ENTRY).is_file() and not path.is_symlink()]

    def _refuse(self, error: OSError) -> None:
        """Raise OutputError if the user named the folder; else warn, as Python does it: once."""
        if self.is_named:
            raise OutputError(f"cache={str(self.folder)!r} cannot be used: {error}") from error
        told = f"what optimize builds is not kept for later processes ({error}): pass cache= with another folder"
        warnings.warn(f"{told}, or cache=False", UserWarning, stacklevel=2)


def _link(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where that cannot be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _bytes_of(entry: Path) -> int:
    total = 0
    for name in (*FILES, ENTRY):
        with suppress(OSError):  # it has no such file, or another process has just removed it
            total += (entry / name).stat().st_size
    return total


def _last_use(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:  # another process has just removed it
        return 0.0


def _remove(entry: Path) -> None:
    """Remove an entry's own files, what makes it one first, and its folder if nothing else is in it."""
    for name in (ENTRY, *FILES):
        with suppress(FileNotFoundError):
            (entry / name).unlink()
    with suppress(FileNotFoundError):
        if not any(entry.iterdir()):
            entry.rmdir()
