"""One file of maps: written whole or not at all, its header saying everything about what is in it.

A safetensors file. A level whose rows have one shape is one tensor (rows, ...) named after it; otherwise row r of it is
a tensor named "level/r". The entry "featx" of its metadata is JSON: `shard`, its number; `plan`, the fingerprint of
what it belongs to; `levels`; by row `ids`, `sources`, `sizes` (width, height) and `stamps` (bytes and time of last
change, or null); `errors`, by image that could not be extracted a list of id, source and reason.
"""

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import OutputError
from .systems import read_range, size_of

KEY = "featx"  # one entry, because safetensors writes several in any order
FIRST_READ = 2**16  # bytes, in which most headers are whole
LONGEST_HEADER = 100 * 2**20  # what safetensors itself accepts
Stamp = tuple[int, int]  # bytes of a file, and the time of its last change in nanoseconds
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that has no row, and why."""

    id: str
    source: str
    reason: str


@dataclass(slots=True)
class Shard:
    """Rows in the order of their items, each with its maps; and what failed among the shard's items.

    maps: by level, then by row, (chs, h, w) or (chs,).
    """

    number: int
    plan: str
    levels: Sequence[str]
    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    stamps: list[Stamp | None] = field(default_factory=list)
    maps: list[list[Tensor]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    @property
    def name(self) -> str:
        return shard_name(self.number)

    def metadata(self) -> dict[str, str]:
        facts = {
            "shard": self.number,
            "plan": self.plan,
            "levels": list(self.levels),
            "ids": self.ids,
            "sources": self.sources,
            "sizes": self.sizes,
            "stamps": self.stamps,
            "errors": [[one.id, one.source, one.reason] for one in self.failed],
        }
        return {KEY: json.dumps(facts)}


def stamp_of(source: str) -> Stamp | None:
    """What tells whether a file of this machine, or the one that an image is packed in, is the same later.

    None for what is no such file.
    """
    try:
        told = os.stat(source)
    except NotADirectoryError:
        return stamp_of(os.path.dirname(source))
    except (OSError, ValueError):
        return None
    return (told.st_size, told.st_mtime_ns) if S_ISREG(told.st_mode) else None


def shard_name(number: int) -> str:
    return f"maps-{number:06d}.safetensors"


def part_name(name: str, writer: str | None = None) -> str:
    """What a file is called while it is written, by this process if not by another: two may have the same shard.

    A cluster that takes a machine for dead gives its shard to another one, and the first may still write.
    """
    if writer is None:
        writer = f"{re.sub(r'[^A-Za-z0-9]+', '-', platform.node())}-{os.getpid()}"
    return f".{name}.{writer}.part"


def write_shard(folder: Path, shard: Shard) -> int:
    """Write the file, replacing one of that name at once; its bytes. The maps are used up. OutputError if it fails."""
    tensors: dict[str, Tensor] = {}
    while shard.maps:  # level by level, so that what is stacked is freed
        level, rows = shard.levels[-len(shard.maps)], shard.maps.pop(0)
        if len({row.shape for row in rows}) == 1:
            tensors[level] = torch.stack(rows)
        else:
            tensors |= {f"{level}/{number}": row.clone() for number, row in enumerate(rows)}
    metadata = shard.metadata()
    write_whole(folder, shard.name, lambda part: save_file(tensors, part, metadata))
    return (folder / shard.name).stat().st_size


def write_whole(folder: Path, name: str, save: Any) -> None:
    """Have `save` write a file that appears under its name, and on the disk, whole or not at all.

    save: called with the path to write to. Raises OutputError if it fails, and leaves nothing then.
    """
    part = folder / part_name(name)
    try:
        part.touch()
        mode = part.stat().st_mode  # as the user's umask has it; safetensors makes files private
        save(part)
        part.chmod(mode)
        _to_disk(part)
        part.replace(folder / name)
        if os.name == "posix":  # elsewhere folders cannot be opened
            _to_disk(folder)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {folder / name}: {error}") from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _to_disk(path: Path) -> None:
    """Ask that a file's content, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Header:
    """What a shard's header says. tensors: by name dtype, shape, and where its bytes begin and end in the file."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]

    @property
    def rows(self) -> int:
        return len(self.metadata["ids"])

    @property
    def failed(self) -> list[Failure]:
        return [Failure(*one) for one in self.metadata["errors"]]

    def shape(self, level: str, row: int) -> tuple[int, ...]:
        return self.place(level, row)[1]

    def place(self, level: str, row: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
        """Dtype and shape of a row's map, and where its bytes begin and end in the file."""
        if level not in self.tensors:
            return self.tensors[f"{level}/{row}"]
        dtype, (rows, *shape), start, end = self.tensors[level]
        step = (end - start) // rows
        return dtype, tuple(shape), start + row * step, start + (row + 1) * step


def read_header(path: str) -> Header:
    """The header of a shard at a path or an address. OutputError if it is no whole shard of maps."""
    try:
        total = size_of(path)
        start = read_range(path, 0, min(total, FIRST_READ))
        length = int.from_bytes(start[:8], "little")
        if not 2 <= length <= min(LONGEST_HEADER, total - 8):
            raise ValueError("it has no header")
        text = start[8 : 8 + length] if 8 + length <= len(start) else read_range(path, 8, 8 + length)
        described = json.loads(text)
        metadata = json.loads(described.pop("__metadata__")[KEY])
        tensors = {name: _placed(tensor, 8 + length) for name, tensor in described.items()}
        if max([8 + length, *(end for *_, end in tensors.values())]) != total:
            raise ValueError("it is cut short")
        return Header(metadata, tensors)
    except FileNotFoundError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no whole shard of maps: {error}") from error


def _placed(tensor: dict[str, Any], start: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    first, last = tensor["data_offsets"]
    return DTYPES[tensor["dtype"]], tuple(tensor["shape"]), start + first, start + last
