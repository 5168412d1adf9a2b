"""The allocator of a whole process: memory that is freed is not asked for again."""

import subprocess
import sys
from pathlib import Path

import pytest

import featx.runtime.allocator as allocator

# In a process of its own, without PyTorch: pages that the kernel fills while blocks of 64 MiB are taken and freed.
CODE = """
import importlib.util, resource, sys
spec = importlib.util.spec_from_file_location("allocator", sys.argv[1])
allocator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocator)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray(b"x") * 2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
print(allocator.keep_freed_memory())
faults()
print(faults())
allocator.return_freed_memory()
print(faults())
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")
def test_a_process_that_keeps_freed_memory_does_not_wait_for_it_again():
    words = [sys.executable, "-c", CODE, str(Path(allocator.__file__))]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    before, told, kept, returned = int(printed[0]), printed[1], int(printed[2]), int(printed[3])
    assert told == "freed memory stays with this process, for speed"
    assert kept < before / 4
    assert returned > before / 4


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_than_on_glibc_nothing_is_done_and_nothing_is_reported(platform, monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", platform)
    assert allocator.keep_freed_memory() is None
    allocator.return_freed_memory()


def test_a_c_library_that_is_not_glibc_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_freed_memory() is None


def test_what_the_c_library_refuses_is_not_told_as_done(monkeypatch):
    class Refusing:
        gnu_get_libc_version = None

        def mallopt(self, option, value):
            return option == allocator.TRIM_THRESHOLD

    monkeypatch.setattr(allocator, "_glibc", Refusing)
    assert allocator.keep_freed_memory() is None
