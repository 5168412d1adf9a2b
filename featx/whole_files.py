"""Files and folders that appear under their names whole, with all of their content on the disk, or not at all."""

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

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+):/")  # drives of Windows have one letter
WRITER, WRITER_PATTERN = "WRITER", r"[A-Za-z0-9-]*-[0-9]+-[0-9a-f]{12}"
LONGEST_NAME = 150  # bytes of a name that a part's name repeats; file systems take 255


def local(place: str | Path) -> Path:
    """The path of this machine that a result is written to.

    Raises:
        OutputError: it is an address, such as s3://bucket/maps, also one whose second slash pathlib removed, or no
            path. Object stores have neither locks nor renames, without which a result is not written whole.
    """
    text = os.fspath(place)
    if "\0" in text:
        raise OutputError(f"{text!r} is no path: it holds a NUL character")
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
    """What a file is called while it is written, another for each writer: several may write one name.

    A cluster that takes a machine for dead gives its work to another one, and the first may still write.

    writer: None names this process and a number that no other writer has.
    """
    if writer is None:
        writer = f"{re.sub(r'[^A-Za-z0-9]+', '-', platform.node())[:50]}-{os.getpid()}-{uuid4().hex[:12]}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = sha256(os.fsencode(name)).hexdigest()
    return f".{name}.{writer}.part"


@contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """Within the block a path to write to, whose file replaces the one at `place` at the end of the block, at once.

    Raises:
        OutputError: the block or the replacement ended with an OSError; nothing of the file is left then.
    """
    with _removed_unless_placed(place) as part:
        part.touch()
        mode = part.stat().st_mode  # as the user's umask has it; safetensors makes files private
        yield part
        part.chmod(mode)
        to_disk(part)
        part.replace(place)
        folder_to_disk(place.parent)


@contextmanager
def workspace(place: Path) -> Iterator[Path]:
    """Within the block a folder beside `place`, for files that are moved out of it one by one.

    Raises:
        OutputError: the block ended with an OSError.
    """
    with _removed_unless_placed(place) as part:
        part.mkdir()
        yield part


@contextmanager
def new_file_or_folder(place: Path) -> Iterator[Path]:
    """Within the block a path for a file or a folder, which is named `place` at the end, where nothing is.

    The block holds the lock of `place` (`alone`).

    Raises:
        OutputError: something is there, or the block ended with an OSError; nothing new is left then.
    """
    require_new(place)
    with _removed_unless_placed(place) as part:
        yield part
        tree_to_disk(part)
        _place_new(part, place)
        folder_to_disk(place.parent)


def _place_new(part: Path, place: Path) -> None:
    """Name the part `place`; OutputError if something is there."""
    try:
        os.link(part, place)
    except FileExistsError:
        require_new(place)
    except OSError:  # a folder, or a file system without links
        require_new(place)
        part.rename(place)


def require_new(place: Path) -> None:
    """OutputError if something is there already."""
    if os.path.lexists(place):
        raise OutputError(f"{place} exists: name a new one, or remove it")


@contextmanager
def alone(place: Path, wait: float = 0, also: Sequence[str] = ()) -> Iterator[None]:
    """Within the block no other process or thread writes `place`; what killed ones left of it is removed before.

    The folder of `place` is made. wait: seconds to wait for another that writes. also: names of the other files in the
    folder that are written with it.

    Raises:
        OutputError: another writes it, or nothing can be written there.
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
    """What the names of all parts of a name match, and of no longer name."""
    return re.escape(part_name(name, WRITER)).replace(re.escape(WRITER), WRITER_PATTERN)


def remove_parts(folder: Path, pattern: str, is_ours: Callable[[str], bool] = lambda _: True) -> None:
    """Remove the files and folders whose names match a regular expression, which writers that were killed left.

    Raises:
        OutputError: that is not allowed.
    """
    try:
        for name in os.listdir(folder):
            if re.fullmatch(pattern, name) and is_ours(name):
                _remove(folder / name)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error}") from error


def tree_to_disk(path: Path) -> None:
    """Ask that a file, or a folder with all that is in it, survives a loss of power."""
    if not path.is_dir():
        to_disk(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            to_disk(Path(folder, name))
        folder_to_disk(Path(folder))


def folder_to_disk(folder: Path) -> None:
    """Ask that a folder's names survive a loss of power."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        to_disk(folder)


def to_disk(path: Path) -> None:
    """Ask that a file's content survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed_unless_placed(place: Path) -> Iterator[Path]:
    """Within the block a path beside `place`; what is left of it is removed, and an OSError is told as of `place`."""
    part = place.with_name(part_name(place.name))
    try:
        yield part
    except OSError as error:
        if isinstance(error, FeatxError):
            raise
        raise OutputError(f"cannot write {place}: {error}") from error
    finally:
        with suppress(OSError):  # what happened first matters
            _remove(part)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
