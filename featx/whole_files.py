"""Atomic writes of files and folders, with their content flushed to disk."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from .errors import FeatxError, OutputError
from .locks import locked

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/")  # drive names of Windows have one letter
WRITER, WRITER_PATTERN = "WRITER", r"[A-Za-z0-9-]*-[0-9]+-[0-9a-f]{12}"
LONGEST_NAME = 150  # bytes of a name that its partial file contains; file systems allow 255


def local(place: str | Path) -> Path:
    """The local path to write a result to.

    Raises:
        OutputError: `place` is not a path, or is an address, such as s3://bucket/maps, also without its second slash,
            which pathlib removes. Atomic writes need locks and renames, which object stores do not have.
    """
    text = os.fspath(place)
    if "\0" in text:
        raise OutputError(f"{text!r} is not a path: it holds a NUL character")
    found = ADDRESS.match(text)
    if found is None or not ("://" in text or _is_protocol(found[1]) or not os.path.isdir(f"{found[1]}:")):
        return Path(place)
    rest = text[found.end() :].removeprefix("/")
    if found[1] == "file":
        raise OutputError(f"{text} is an address, and results are written to paths: name /{rest.lstrip('/')}")
    raise OutputError(
        f"{found[1]}://{rest} is an address, and results are written to paths of this machine: name a path, and copy "
        "what is there when it is done, with `aws s3 sync`, `gcloud storage rsync`, `hf upload` or the like; or name a "
        "path below which the bucket is mounted"
    )


def _is_protocol(scheme: str) -> bool:
    from fsspec.registry import available_protocols

    return scheme.rpartition("::")[2] in (*available_protocols(), "azure", "wasb", "wasbs")


def part_name(name: str, writer: str | None = None) -> str:
    """The name of a partial file, which is unique for each writer, because several may write the same file.

    For example, a cluster may reassign the work of a machine that it considers dead but that still writes.

    Args:
        name: of the file.
        writer: None is the host, the process and a random number.
    """
    if writer is None:
        writer = f"{re.sub(r'[^A-Za-z0-9]+', '-', platform.node())[:50]}-{os.getpid()}-{uuid4().hex[:12]}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = sha256(os.fsencode(name)).hexdigest()
    return f".{name}.{writer}.part"


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """A context with a path to write to; at its end, the file atomically replaces the one at `place`.

    Raises:
        OutputError: the context or the replacement raised an OSError; no partial file is left.
    """
    with _removed_unless_placed(place) as part:
        part.touch()
        mode = part.stat().st_mode  # according to the user's umask; safetensors creates private files
        yield part
        part.chmod(mode)
        to_disk(part)
        part.replace(place)
        folder_to_disk(place.parent)


@contextmanager
def workspace(place: Path) -> Iterator[Path]:
    """A context with a temporary folder beside `place`, for files that are moved out of it one by one.

    Raises:
        OutputError: the context raised an OSError.
    """
    with _removed_unless_placed(place) as part:
        part.mkdir()
        yield part


@contextmanager
def new_file_or_folder(place: Path) -> Iterator[Path]:
    """A context with a path for a new file or folder, which is renamed to `place` at its end.

    The caller holds the lock of `place` (`alone`).

    Raises:
        OutputError: `place` exists, or the context raised an OSError; no partial file is left.
    """
    require_new(place)
    with _removed_unless_placed(place) as part:
        yield part
        tree_to_disk(part)
        _place_new(part, place)
        folder_to_disk(place.parent)


def _place_new(part: Path, place: Path) -> None:
    """Rename the partial file to `place`; OutputError if `place` exists."""
    try:
        os.link(part, place)
    except FileExistsError:
        require_new(place)
    except OSError:  # a folder, or a file system without links
        require_new(place)
        part.rename(place)


def require_new(place: Path) -> None:
    """Raise OutputError if `place` exists."""
    if os.path.lexists(place):
        raise OutputError(f"{place} exists: name a new one, or remove it")


@contextmanager
def alone(place: Path, wait: float = 0, also: Sequence[str] = ()) -> Iterator[None]:
    """A context in which no other process or thread writes `place`; partial files of killed ones are removed first.

    Args:
        place: to write; its folder is created.
        wait: seconds to wait for another writer.
        also: names of further files in the folder that are written together with it.

    Raises:
        OutputError: another process or thread is writing it, or the folder cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error}") from error
    lock = place.with_name(part_name(place.name, "lock").removesuffix(".part"))
    with locked(lock, f"another process is writing {place}", wait):
        for name in (place.name, *also):
            remove_parts(place.parent, _pattern_of_parts(name))
        yield


def _pattern_of_parts(name: str) -> str:
    """A regular expression of the partial files of a name."""
    return re.escape(part_name(name, WRITER)).replace(re.escape(WRITER), WRITER_PATTERN)


def remove_parts(folder: Path, pattern: str, is_ours: Callable[[str], bool] = lambda _: True) -> None:
    """Remove partial files and folders of killed writers.

    Args:
        folder: that contains them.
        pattern: regular expression of their names.
        is_ours: further condition on a name.

    Raises:
        OutputError: they cannot be removed.
    """
    try:
        for name in os.listdir(folder):
            if re.fullmatch(pattern, name) and is_ours(name):
                _remove(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error}") from error


def tree_to_disk(path: Path) -> None:
    """Flush a file, or a folder with all of its content, to disk."""
    if not path.is_dir():
        to_disk(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            to_disk(Path(folder, name))
        folder_to_disk(Path(folder))


def folder_to_disk(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    if os.name == "posix":  # other systems cannot open folders
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Flush the content of a file to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed_unless_placed(place: Path) -> Iterator[Path]:
    """A context with a path beside `place`, which is removed at the end; an OSError becomes an OutputError."""
    part = place.with_name(part_name(place.name))
    try:
        yield part
    except OSError as error:
        if isinstance(error, FeatxError):
            raise
        raise OutputError(f"cannot write {place}: {error}") from error
    finally:
        with suppress(OSError):  # report the first error
            _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
