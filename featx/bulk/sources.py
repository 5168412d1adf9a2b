"""Sources of images, and the record of files that are left out.

A source lists names in a fixed order and reads the bytes of each. Sources are picklable, so that other threads,
processes and machines can read the images.
"""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from stat import S_ISREG
from typing import Any, Protocol

from ..errors import ArgumentError, ImageError, escaped, shortened
from .filesystems import fetch_with_retries

SHOWN_KINDS = 8
COMPRESSED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
UNPACK = "unpack them, or pack them as .tar or .zip"
NO_ENDING, SIDECAR, EXCLUDED, TWICE = "without an ending", "sidecars of macOS or Windows", "excluded", "named twice"
OUTPUT, NO_IMAGES = "outputs of featx", "tables without images"
LINKS, FOLDERS = "links in tars", "folders that match a pattern without **"
# Surrogates that do not stand for a byte of a file name, and that UTF-8 cannot encode.
SURROGATES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files among the inputs that are not images or could not be read.

    Attributes:
        kinds: number of files by kind, the most frequent first; a kind is an extension such as ".txt", or a word such
            as "excluded".
        remarks: why a folder or file could not be read, or what is unusual about it, by path.
    """

    kinds: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The kinds in one line, with hints for archives: "5 .tgz (unpack them …), 3 .txt"."""
        entries = [f"{count:,} {escaped(kind)}{_hint(kind)}" for kind, count in self.kinds.items()]
        more = len(entries) - SHOWN_KINDS
        return ", ".join(entries if more < 1 else [*entries[:SHOWN_KINDS], f"files of {more} more kinds"])


def _hint(kind: str) -> str:
    return f" ({UNPACK})" if kind in COMPRESSED else ""


def ending_of(name: str) -> str:
    """The extension of a file in lower case, with its dot: ".jpg", ".tar.gz"; or ""."""
    lower = name.lower()
    compressed = next((ending for ending in COMPRESSED if lower.endswith(ending)), None)
    return compressed or os.path.splitext(lower)[1]


class Tally:
    """Counts files that are left out while inputs are searched."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._remarks: dict[str, str] = {}

    def count(self, kind: str, files: int = 1) -> None:
        if files:
            self._kinds[kind] += files

    def count_file(self, name: str) -> None:
        """Count a file that is not an image by its extension."""
        self.count(ending_of(name) or NO_ENDING)

    def add_remark(self, path: str, remark: str) -> None:
        """Record a remark about a folder or a file; only its first one is kept."""
        self._remarks.setdefault(path, remark)

    def left_out(self) -> LeftOut:
        kinds = dict(sorted(self._kinds.items(), key=lambda pair: (-pair[1], pair[0])))
        return LeftOut(kinds, dict(self._remarks))


class Source(Protocol):
    """Images in a fixed order. `names` are unique within the source and may contain any characters."""

    @property
    def names(self) -> Sequence[str]: ...

    def where(self, index: int) -> str:
        """The path or address of an image, for messages and for the index."""
        ...

    def read(self, index: int) -> bytes:
        """The bytes of an image file; ImageError with the reason if they cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files of this machine: `names` are paths relative to `root`, which ends with a separator unless it is empty."""

    root: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return self.root + self.names[index]

    def read(self, index: int) -> bytes:
        return read_file(self.where(index))


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """Files of a file system of fsspec; its path of a file is `root` + name."""

    system: Any
    root: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return self.system.unstrip_protocol(self.root + self.names[index])

    def read(self, index: int) -> bytes:
        return fetch_with_retries(lambda: self.system.cat_file(self.root + self.names[index]))


def read_file(path: str) -> bytes:
    """The bytes of a file; ImageError if it cannot be read, or is not a regular file, such as a pipe."""
    try:
        if not S_ISREG(os.stat(path).st_mode):
            raise ImageError("it is not a file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except ValueError as error:
        raise ImageError(f"{shortened([repr(path)])[0]} is not a path: {error}") from error


class UnreadableError(ArgumentError):
    """A tar, a zip or a table is damaged or truncated, or cannot be opened."""


class NoImagesError(ArgumentError):
    """A table has neither a column of images nor one of paths."""


@dataclass(frozen=True, slots=True)
class Broken:
    """An archive or table that cannot be read, represented by one image that fails with the reason."""

    path: str
    names: Sequence[str]
    reason: str

    def where(self, index: int) -> str:  # noqa: ARG002
        return self.path

    def read(self, index: int) -> bytes:  # noqa: ARG002
        raise ImageError(self.reason)


class Items:
    """The images of several sources, with unique ids that depend only on the inputs.

    Args:
        sources: of images.
        prefixes: for every source, the beginning of the ids, which is followed by the names.
        column: the requested column of tables.
        left_out: files that are not images.

    Raises:
        ArgumentError: two images have the same id.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        prefixes: Sequence[str],
        column: str | None = None,
        left_out: LeftOut = LeftOut(),
    ) -> None:
        self.sources, self.column, self.left_out = tuple(sources), column, left_out
        self._starts = [0, *accumulate(len(source.names) for source in sources)]
        self.ids = [
            as_text(prefix + name) for source, prefix in zip(sources, prefixes, strict=True) for name in source.names
        ]
        if len(set(self.ids)) < len(self.ids):
            twice = [id_ for id_, count in Counter(self.ids).items() if count > 1]
            places = ", ".join(shortened([self.where(i) for i, id_ in enumerate(self.ids) if id_ == twice[0]], 2))
            raise ArgumentError(
                f"{len(twice)} ids are of several images, such as {shortened([repr(twice[0])])[0]} of {places}: "
                "give each image once, under a name of its own"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sources = ", ".join(shortened(type(source).__name__ for source in self.sources))
        return f"Items({len(self)} images of {sources or 'no source'})"

    def where(self, index: int) -> str:
        """The path or address of an image."""
        source, within = self._find(index)
        return as_text(source.where(within))

    def read(self, index: int) -> bytes:
        """The bytes of an image file; ImageError with the reason if they cannot be read."""
        source, within = self._find(index)
        return source.read(within)

    def digest(self) -> str:
        """SHA-256 of the ids in their order, and of the column, because another column has the same ids."""
        digest = sha256(b"" if self.column is None else f"column {self.column}\n".encode())
        for id_ in self.ids:
            digest.update(f"{id_}\n".encode())
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[Source, int]:
        source = bisect_right(self._starts, index) - 1
        return self.sources[source], index - self._starts[source]


def as_text(name: str) -> str:
    r"""The name with bytes and surrogates that UTF-8 cannot encode escaped as \x.. or \u....."""
    if name.isprintable():
        return name
    text = SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", name)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
