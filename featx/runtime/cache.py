"""A cache on disk, for graphs that `optimize` built and runtimes that it selected.

An entry is a folder whose name is its key: the SHA-256 of everything that determines its contents. It holds data files,
and `entry.json` with the key and the SHA-256 of each file. Entries are created atomically. A lookup treats an entry
that is damaged, or that has another key, as absent.
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

MOST_BYTES = 5 * 2**30  # of a cache; the least recently used entries are removed first
LOCK_SECONDS = 600.0  # timeout for another process that builds the same entry
ENTRY = "entry.json"
FILES = ("model.onnx", "model.onnx.data", "model.blob", "facts.json")  # the data files that entries can have
Place = bool | str | os.PathLike[str] | None


class OwnFolder:
    """A temporary folder, removed when this object is garbage-collected or when the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="featx-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def default_folder() -> Path:
    """FEATX_CACHE from the environment, by default `featx` in the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    if folder := os.environ.get("FEATX_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featx"


def cache_at(place: Place) -> "Cache | None":
    """The cache for an argument `cache=`: the default one for None and True, None for False, else that of a folder.

    Raises:
        ArgumentError: The argument is none of these.
    """
    if place is False:
        return None
    if place is None or place is True:
        return Cache(default_folder() / "runtimes")
    if not isinstance(place, str | os.PathLike):
        raise ArgumentError(f"cache={place!r}: expected a folder, True for the default one, or False for none")
    return Cache(Path(place), is_named=True)


def clear_cache(cache: Place = None) -> int:
    """Remove all entries that `optimize` stored in a cache; other files in its folder are kept.

    Args:
        cache: The folder of the cache; None is the default one.

    Returns:
        The number of removed entries.

    Raises:
        ArgumentError: `cache` is not a folder.
        OutputError: An entry cannot be removed.
    """
    selected = cache_at(cache)
    if selected is None:
        raise ArgumentError("cache=False: expected a folder, or None for the default one")
    return selected.clear()


@dataclass(frozen=True, slots=True)
class Cache:
    """Cache entries in a folder.

    Attributes:
        folder: The folder, which need not exist.
        is_named: Whether the user named the folder; if so, a folder that is not writable is an error, not a warning.
    """

    folder: Path
    is_named: bool = False

    def find(self, key: str) -> OwnFolder | None:
        """A temporary folder with the files of an entry, which outlive the entry; None without a valid entry."""
        entry = self.folder / key
        try:
            digests = _digests(entry)
            copy = OwnFolder()
            for name, digest in digests.items():
                _link_or_copy(entry / name, copy.path / name)
                if _sha256(copy.path / name) != digest:
                    return None
        except (OSError, JsonError):  # absent, damaged, or removed in the meantime
            return None
        with suppress(OSError):  # the cache is read-only
            os.utime(entry)  # the time of the last use
        return copy

    @contextmanager
    def reserved(self, key: str) -> Iterator[None]:
        """Lock an entry within a `with` block, so that only one process or thread builds it.

        Without write permission in the default folder, this warns and locks nothing.

        Raises:
            OutputError: The user named the folder, and it is not writable.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self.folder / key, LOCK_SECONDS))
            except OutputError as error:
                self._refuse(error)
            yield

    def keep(self, key: str, folder: Path) -> None:
        """Store the files of a folder as the entry of a key, and replace an existing entry.

        Raises:
            OutputError: The user named the folder of the cache, and it is not writable.
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
        """Remove all entries, and return their number."""
        entries = self._entries()
        try:
            for entry in entries:
                _remove(entry)
        except OSError as error:
            raise OutputError(f"cannot remove what is in {self.folder}: {error}") from error
        return len(entries)

    def _shrink(self, latest: Path) -> None:
        """Remove the least recently used entries, except the latest one, until the cache is within MOST_BYTES."""
        sizes = {entry: _bytes_of(entry) for entry in self._entries()}
        total = sum(sizes.values())
        for entry in sorted(sizes, key=_last_use):
            if total <= MOST_BYTES:
                return
            if entry != latest:
                _remove(entry)
                total -= sizes[entry]

    def _entries(self) -> list[Path]:
        """The folders that have an entry's name and its `entry.json`."""
        named = [path for path in self.folder.glob("*") if re.fullmatch("[0-9a-f]{64}", path.name)]
        return [path for path in named if (path / ENTRY).is_file() and not path.is_symlink()]

    def _refuse(self, error: OSError) -> None:
        """Raise OutputError if the user named the folder; else warn, once per process with Python's default filter."""
        if self.is_named:
            raise OutputError(f"cache={str(self.folder)!r} cannot be used: {error}") from error
        message = f"what optimize builds is not kept for later processes ({error}): pass cache= with another folder"
        warnings.warn(f"{message}, or cache=False", UserWarning, stacklevel=2)


def _digests(entry: Path) -> dict[str, str]:
    """SHA-256 by file of an entry; OSError if it is absent, JsonError if its `entry.json` is invalid."""
    stated = parsed((entry / ENTRY).read_bytes())
    stated["key"].text((entry.name,))
    digests = {name: stated["sha256"][name].text() for name in FILES if name in stated["sha256"].object()}
    if not digests:
        raise stated["sha256"].mismatch("a digest per file")
    return digests


def _link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file systems differ."""
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
        with suppress(OSError):  # it has no such file, or another process removed it
            total += (entry / name).stat().st_size
    return total


def _last_use(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:  # another process removed it
        return 0.0


def _remove(entry: Path) -> None:
    """Remove the files of an entry, `entry.json` first, and its folder if that is then empty."""
    for name in (ENTRY, *FILES):
        with suppress(FileNotFoundError):
            (entry / name).unlink()
    with suppress(FileNotFoundError):
        if not any(entry.iterdir()):
            entry.rmdir()
