"""Sources of images, and what a search for them leaves out.

Each source lists names in a fixed order and reads the bytes of any of them. Sources are plain data, so that they travel
to other threads, processes and machines, and each image is read there.
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
from .filesystems import fetched

SHOWN_KINDS = 8
COMPRESSED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
UNPACK = "unpack them, or pack them as .tar or .zip"
NO_ENDING, SIDECAR, EXCLUDED, TWICE = "without an ending", "sidecars of macOS or Windows", "excluded", "named twice"
OUTPUT, NO_IMAGES = "outputs of featx", "tables without images"
LINKS, FOLDERS = "links in tars", "folders that match a pattern without **"
# Halves of characters that stand for no byte of a file's name: no text can hold them.
HALVES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was found among the inputs and is no image, or could not be looked into.

    kinds: how many files by kind, which is an ending such as ".txt" or words such as "excluded", most first. remarks:
    by the path of a folder or a file why it could not be read, or what is odd about it.
    """

    kinds: Mapping[str, int] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The kinds in a line, with what to do about those that can be had: "5 .tgz (unpack them …), 3 .txt"."""
        told = [f"{count:,} {escaped(kind)}{_hint(kind)}" for kind, count in self.kinds.items()]
        more = len(told) - SHOWN_KINDS
        return ", ".join(told if more < 1 else [*told[:SHOWN_KINDS], f"files of {more} more kinds"])


def _hint(kind: str) -> str:
    return f" ({UNPACK})" if kind in COMPRESSED else ""


def ending_of(name: str) -> str:
    """The ending by which a file is known, in small letters with its dot: ".jpg", ".tar.gz"; nothing without one."""
    lower = name.lower()
    compressed = next((ending for ending in COMPRESSED if lower.endswith(ending)), None)
    return compressed or os.path.splitext(lower)[1]


class Tally:
    """Counts what is left out while inputs are searched."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._remarks: dict[str, str] = {}

    def count(self, kind: str, files: int = 1) -> None:
        if files:
            self._kinds[kind] += files

    def count_file(self, name: str) -> None:
        """Count a file that is none of images by its ending."""
        self.count(ending_of(name) or NO_ENDING)

    def tell(self, path: str, remark: str) -> None:
        """Name a folder or a file with the first remark about it."""
        self._remarks.setdefault(path, remark)

    def left_out(self) -> LeftOut:
        kinds = dict(sorted(self._kinds.items(), key=lambda pair: (-pair[1], pair[0])))
        return LeftOut(kinds, dict(self._remarks))


class Source(Protocol):
    """Images in a fixed order. `names` tell them apart within the source; a name may hold any characters."""

    @property
    def names(self) -> Sequence[str]: ...

    def where(self, index: int) -> str:
        """The path or address of an image, for people and for the index."""
        ...

    def read(self, index: int) -> bytes:
        """The image file's bytes; ImageError with the reason if they cannot be had."""
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
    """Files of any file system that fsspec knows; `root` and `names` join to what it calls a path."""

    system: Any
    root: str
    names: Sequence[str]

    def where(self, index: int) -> str:
        return self.system.unstrip_protocol(self.root + self.names[index])

    def read(self, index: int) -> bytes:
        return fetched(lambda: self.system.cat_file(self.root + self.names[index]))


def read_file(path: str) -> bytes:
    """The bytes of a file; ImageError if it cannot be read, or is a pipe or the like, which might never end."""
    try:
        if not S_ISREG(os.stat(path).st_mode):
            raise ImageError("it is not a file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except ValueError as error:
        raise ImageError(f"{shortened([repr(path)])[0]} is no path: {error}") from error


class UnreadableError(ArgumentError):
    """A tar, a zip or a table that is damaged, cut short, or cannot be opened."""


class NoImagesError(ArgumentError):
    """A table whose columns hold neither images nor paths."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A file of images that cannot be read, as an image that fails with the reason: what was in it is lost."""

    path: str
    names: Sequence[str]
    reason: str

    def where(self, index: int) -> str:  # noqa: ARG002
        return self.path

    def read(self, index: int) -> bytes:  # noqa: ARG002
        raise ImageError(self.reason)


class Items:
    """Every image of several sources under ids that are unique and the same whenever the same inputs are given.

    prefixes: by source, what comes before its names to make ids. column: the one asked for, of those that may hold
    images. left_out: what was found beside them. Raises ArgumentError if two images have one id.
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
        source, within = self._find(index)
        return as_text(source.where(within))

    def read(self, index: int) -> bytes:
        """The bytes of an image file; ImageError with the reason if they cannot be had."""
        source, within = self._find(index)
        return source.read(within)

    def digest(self) -> str:
        """SHA-256 of the ids in their order, and of the column: rows of another one have the same ids."""
        digest = sha256(b"" if self.column is None else f"column {self.column}\n".encode())
        for id_ in self.ids:
            digest.update(f"{id_}\n".encode())
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[Source, int]:
        source = bisect_right(self._starts, index) - 1
        return self.sources[source], index - self._starts[source]


def as_text(name: str) -> str:
    r"""The name with what is no text as \x.. or \u...., because files of text and tables cannot hold them."""
    if name.isprintable():
        return name
    whole = HALVES.sub(lambda found: f"\\u{ord(found[0]):04x}", name)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
