"""What a search for images does not take: counted by kind, and named with a reason where images may be lost."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import escaped

SHOWN_KINDS = 8
COMPRESSED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
UNPACK = "unpack them, or pack them as .tar or .zip"
NO_ENDING, SIDECAR, EXCLUDED, TWICE = "without an ending", "sidecars of macOS or Windows", "excluded", "named twice"
OUTPUT, NO_IMAGES = "outputs of featx", "tables without images"
LINKS, FOLDERS = "links in tars", "folders that match a pattern without **"


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
