"""Access to files of this machine, and to addresses that fsspec supports."""

import os
from collections.abc import Callable
from stat import S_ISREG
from typing import Any, BinaryIO

from ..errors import ArgumentError, ImageError, in_short, shortened

ATTEMPTS, FIRST_WAIT, LONGEST_WAIT = 4, 0.25, 8.0  # of a remote read, and seconds between them
FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, ArgumentError)  # not retried


def is_address(path: str) -> bool:
    return "://" in path


def open_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path within it; ArgumentError if fsspec cannot open it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)
    except Exception as error:  # each file system has errors of its own
        raise ArgumentError(f"{shortened([address])[0]}: {in_short(error)}") from error


def query_system(address: str, query: Callable[[str], Any], path: str) -> Any:
    """The result of a query to a file system; ArgumentError with the address if it fails."""
    try:
        return query(path)
    except Exception as error:  # each file system has errors of its own
        raise ArgumentError(f"{shortened([address])[0]} cannot be looked into: {in_short(error)}") from error


def open_regular(path: str) -> BinaryIO:
    """The opened file; OSError if it cannot be opened, or is not a regular file, such as a pipe."""
    if "\0" in path:
        raise FileNotFoundError(f"{path!r} is not a path")
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115
    if S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(f"{path} is not a file")


def _open_at_once(path: str, flags: int) -> int:
    """Open without blocking on a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_binary(path: str) -> BinaryIO:
    """The opened file of a path or an address; OSError if it cannot be opened."""
    if not is_address(path):
        return open_regular(path)
    system, within = open_system(path)
    return system.open(within, "rb")


def fetch_with_retries(read: Callable[[], bytes]) -> bytes:
    """The result of a remote read, with up to three retries; ImageError after the last failure."""
    from tenacity import Retrying, retry_if_not_exception_type, stop_after_attempt, wait_random_exponential

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
        retry=retry_if_not_exception_type(FINAL),
        reraise=True,
    )
    try:
        return retrying(read)
    except Exception as error:  # each file system has errors of its own
        raise ImageError(f"cannot be fetched: {in_short(error)}") from error


def read_whole(path: str) -> bytes:
    """The content of a path or an address; OSError if it cannot be read."""
    with open_binary(path) as file:
        return file.read()


def read_range(path: str, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` (exclusive), fewer if the file is shorter; OSError if it cannot be read."""
    if is_address(path):
        system, within = open_system(path)
        return system.cat_file(within, start=start, end=end)
    with open_regular(path) as file:
        file.seek(start)
        return file.read(end - start)


def size_of(path: str) -> int:
    """Size of a file in bytes; OSError if it does not exist."""
    if is_address(path):
        system, within = open_system(path)
        return system.size(within)
    return os.path.getsize(path)


def names_in(folder: str) -> list[str]:
    """Sorted names of the entries of a folder; OSError if it is not a folder."""
    if is_address(folder):
        system, within = open_system(folder)
        return sorted(path.rpartition("/")[2] for path in system.ls(within, detail=False))
    return sorted(os.listdir(folder))


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else os.path.join(folder, name)
