"""Keeps freed memory with the process, where the C library would give it back after every batch; for whole processes.

glibc gives memory at the end of its heap back to the kernel, and large blocks always. What a batch of images needs is
then asked for again by the next layer or batch, and the kernel fills it with zeros, page by page: up to half of the
time of large batches. This is for programs, such as `featx bench` and `featx extract`, that own their process; no
function of the library does it unasked.
"""

import ctypes
import sys
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # of mallopt, in malloc.h
NEVER = 2**31 - 1
# The most that releases of glibc take which limit it, and what is more than any map.
BLOCKS = (2**30, 32 * 2**20)
TOLD = "what is freed stays with this process, for speed"


def keep_freed_memory() -> str | None:
    """Let this process keep the memory it frees, and return a sentence that says so; None where this is not glibc."""
    library = _glibc()
    if library is None or not library.mallopt(TRIM_THRESHOLD, NEVER):
        return None
    library.mallopt(ARENA_MAX, 1)  # what one thread frees, another may take
    return TOLD if any(library.mallopt(MMAP_THRESHOLD, size) for size in BLOCKS) else None


def return_freed_memory() -> None:
    """Give what is free back to the system now; nothing where this is not glibc."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
