"""A file of maps that is open: its bytes as they were when its header was read, or an error."""

import os
from typing import BinaryIO

from ..errors import OutputError
from ..file_version import Version, version_of
from .systems import is_address, open_regular, read_range, size_of


class ShardFile:
    """Reads a file at a path or an address, from any number of threads.

    version: of the file that was read before. The bytes are read and not mapped, since memory that is mapped from a
    file ends the process when the file is cut short. OSError if it cannot be opened; OutputError if it is another file
    now, was overwritten or is gone. At an address nothing tells that but an end that is missing.
    """

    _file: BinaryIO | None = None

    def __init__(self, path: str, version: Version | None = None) -> None:
        self._path = path
        if not is_address(path):
            try:
                self._file = open_regular(path)
            except OSError as error:
                if version is None:
                    raise
                raise self._changed() from error
        self._version = version or self.version
        self._require_same()

    @property
    def version(self) -> Version | None:
        """Of a file of this machine as it is now."""
        return None if self._file is None else version_of(self._file.fileno())

    @property
    def nbytes(self) -> int:
        return size_of(self._path) if self._version is None else self._version.nbytes

    def read(self, start: int, end: int) -> bytearray:
        """The bytes from start up to end, all of one version of the file."""
        try:
            content = bytearray(end - start)
        except MemoryError:
            raise OutputError(f"{self._path}: there is no memory for {end - start} bytes of it") from None
        read = read_range(self._path, start, end) if self._file is None else None
        count = self._fill(memoryview(content), start) if read is None else len(read)
        if read is not None and count == end - start:
            content[:] = read
        self._require_same()
        if count != end - start:
            raise self._changed()
        return content

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    __del__ = close

    def _fill(self, content: memoryview, start: int) -> int:
        """Read into the memory, which a system does in parts of up to 2 GiB; how many bytes there were."""
        assert self._file is not None
        if not hasattr(os, "preadv"):
            with open_regular(self._path) as file:
                file.seek(start)
                return file.readinto(content)  # pyright: ignore[reportAttributeAccessIssue]
        count = 0
        while count < len(content) and (more := os.preadv(self._file.fileno(), [content[count:]], start + count)):
            count += more
        return count

    def _require_same(self) -> None:
        if self.version != self._version:
            raise self._changed()

    def _changed(self) -> OutputError:
        return OutputError(
            f"{self._path} was overwritten, replaced or removed while it was in use: open the folder again; featx "
            "extract replaces files of maps whole, and nothing else should write to them"
        )
