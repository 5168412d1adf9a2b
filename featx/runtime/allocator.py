"""Settings of glibc's allocator that keep freed memory in the process instead of returning it to the kernel.

glibc returns free memory at the end of its heap to the kernel, and every large block when it is freed. The next layer
or batch requests this memory again, and the kernel zeroes it page by page, which takes up to half of the time of large
batches. The settings apply to the whole process, so only programs that own their process change them, such as `featx
bench` and `featx extract`; no function of the library does.
"""

import ctypes
import sys
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8  # parameters of mallopt, from malloc.h
NEVER = 2**31 - 1
# Bytes: the maximum of glibc releases that limit this threshold, then a value above the size of any map.
MMAP_THRESHOLDS = (2**30, 32 * 2**20)
MESSAGE = "freed memory stays with this process, for speed"


def keep_freed_memory() -> str | None:
    """Keep freed memory in this process, and return a sentence that describes it; None if the C library is not glibc.

    None is also returned if glibc refuses the settings.
    """
    library = _glibc()
    if library is None or not library.mallopt(TRIM_THRESHOLD, NEVER):
        return None
    library.mallopt(ARENA_MAX, 1)  # one heap, so that a thread can reuse memory that another thread freed
    return MESSAGE if any(library.mallopt(MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS) else None


def return_freed_memory() -> None:
    """Return free memory to the kernel now; without glibc, this does nothing."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process, or None if it is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
