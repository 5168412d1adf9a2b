"""Locks between processes, whose files say who holds them."""

import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import OutputError

MOMENT = 60.0  # seconds to wait for what others write in a moment


@contextmanager
def locked(lock: Path, subject: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock within the block; its file is removed at the end of the block.

    A lock that a killed process left is taken over: the kernel releases locks of dead processes, and on a file system
    without flock the file names its process, which is looked for if it is of this host.

    Args:
        lock: path of the file that is locked; its folder exists.
        subject: what the holder does, for the message, such as "another run is writing to maps".
        wait: seconds to wait for a lock that is held.

    Raises:
        OutputError: another process or thread holds the lock, or its file cannot be written.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    warnings.filterwarnings("ignore", "flock not supported", UserWarning)  # the file of a soft lock serves as well
    held = FileLock(lock)
    try:
        held.acquire(timeout=wait)
    except Timeout as error:
        raise OutputError(f"{subject} ({lock.name} is held{_holder(lock)}") from error
    except OSError as error:
        raise OutputError(f"cannot write to {lock.parent}: {error}") from error
    is_named = os.name == "posix" and not isinstance(held, SoftFileLock)  # soft locks name their process themselves
    try:
        if is_named:
            with suppress(OSError):  # a full disk: the lock holds without a name
                lock.write_text(f"{os.getpid()}\n{platform.node()}\n")
        yield
    finally:
        if is_named:
            with suppress(OSError):
                lock.unlink()  # before the release: whoever waits for this file then makes a new one
        held.release()


def _holder(lock: Path) -> str:
    """Who holds a lock and since when, and what ends that: the rest of the message."""
    try:
        pid, host = lock.read_text(encoding="utf-8").split("\n")[:2]
        since = datetime.fromtimestamp(lock.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")
    except (OSError, ValueError):
        return f"): wait for it, or stop it first. If no featx process on any machine writes there, delete {lock}"
    told = f" by process {pid} on {host} since {since}): wait for it, or stop it first"
    if host == platform.node():
        return told
    return f"{told}. If that machine is gone, or `ps -p {pid}` on it shows no such process, delete {lock}"
