"""Locks between processes; the lock files name the process that holds them."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import OutputError

MOMENT = 60.0  # seconds to wait for short writes of other processes


@contextmanager
def locked(lock: Path, subject: str, wait: float = 0) -> Iterator[None]:
    """A context that holds a lock and removes the lock file at its end.

    Locks of killed processes are released: by the kernel, or on a file system without flock by a check of whether the
    process that the file names still exists, if it was on this host.

    Args:
        lock: path of the lock file; its folder exists.
        subject: what the holder does, for the message, such as "another run is writing to maps".
        wait: seconds to wait for the lock.

    Raises:
        OutputError: another process or thread holds the lock, or the file cannot be written.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    warnings.filterwarnings("ignore", "flock not supported", UserWarning)  # a soft lock is used instead
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=wait)
    except Timeout as error:
        raise OutputError(f"{subject} ({lock.name} is held{_holder(lock)}") from error
    except OSError as error:
        raise OutputError(f"cannot write to {lock.parent}: {error}") from error
    is_named = os.name == "posix" and not isinstance(file_lock, SoftFileLock)  # soft locks name their process
    try:
        if is_named:
            with suppress(OSError):  # the disk is full: the lock works without a name
                lock.write_text(f"{os.getpid()}\n{platform.node()}\n")
        yield
    finally:
        if is_named:
            with suppress(OSError):
                lock.unlink()  # before the release, so that waiting processes create a new file
        file_lock.release()


def _holder(lock: Path) -> str:
    """The end of the message: who holds the lock, since when, and what to do."""
    try:
        pid, host = lock.read_text(encoding="utf-8").split("\n")[:2]
        since = datetime.fromtimestamp(lock.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    except (OSError, ValueError):
        return f"): wait for it, or stop it first. If no featx process on any machine writes there, delete {lock}"
    holder = f" by process {pid} on {host} since {since}): wait for it, or stop it first"
    if host == platform.node():
        return holder
    return f"{holder}. If that machine is gone, or `ps -p {pid}` on it shows no such process, delete {lock}"
