"""Limits of a file system: the size of a file, a full or read-only disk."""

import ctypes
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def file_size_limit(nbytes: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory at the folder; the test is skipped where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    if libc.mount(b"none", bytes(folder), b"tmpfs", 0, options.encode()):
        pytest.skip(f"mounting is not allowed here: {os.strerror(ctypes.get_errno())}")
    try:
        yield libc
    finally:
        libc.umount2(bytes(folder), 2)
