"""What the header of a file of maps says, checked against the plan of the extraction that it is of."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch

from ..errors import OutputError
from ..file_version import Version
from ..json_checks import JsonError, Value, parsed
from .meta import META, Plan, StoredLevel
from .shard import KEY, LONGEST_HEADER, Failure, ShardFile, Stamp

FIRST_READ = 2**16  # bytes, in which most headers are whole
DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}
LARGEST = 2**31 - 1  # of sides and shapes, which the index has in 32 bits


class Place(NamedTuple):
    """A tensor of a file: its type, its shape, and where its bytes begin and end."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a shard's header says: its number; by row ids, sources, sizes and stamps; failures; places by name.

    version: of the file that it was read from. digest: SHA-256 of what the file holds, in files that have one.
    directory: which relative sources are seen from. stored: by row, the row of the file, where others of the file are
    left out.
    """

    number: int
    ids: Sequence[str]
    sources: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    stamps: Sequence[Stamp | None]
    failed: tuple[Failure, ...]
    tensors: dict[str, Place]
    version: Version | None
    digest: str | None = None
    directory: str = ""
    stored: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def every_id(self) -> list[str]:
        """The ids of its rows, and of its failures."""
        return [*self.ids, *(one.id for one in self.failed)]

    def where(self, keep: Callable[[str], bool]) -> "Header":
        """Without the images, of those that have rows and those that failed, whose ids are not to be kept."""
        rows = [row for row, id_ in enumerate(self.ids) if keep(id_)]
        failed = tuple(one for one in self.failed if keep(one.id))
        if (len(rows), len(failed)) == (self.rows, len(self.failed)):
            return self
        by_row = {key: [getattr(self, key)[row] for row in rows] for key in ("ids", "sources", "sizes", "stamps")}
        return replace(self, **by_row, failed=failed, stored=[self.stored_row(row) for row in rows])

    def stored_row(self, row: int) -> int:
        """The number of a row within the file."""
        return row if self.stored is None else self.stored[row]

    def shape(self, level: str, row: int) -> tuple[int, ...]:
        return self.place(level, row).shape

    def place(self, level: str, row: int) -> Place:
        """Dtype and shape of a row's map, and where its bytes begin and end in the file."""
        row = self.stored_row(row)
        if level not in self.tensors:
            return self.tensors[f"{level}/{row}"]
        dtype, (rows, *shape), start, end = self.tensors[level]
        step = (end - start) // rows
        return Place(dtype, tuple(shape), start + row * step, start + (row + 1) * step)


def number_of(path: str) -> int:
    """The number of a shard, from its file's name."""
    found = re.search(r"maps-([0-9]{6})\.safetensors$", path)
    assert found is not None
    return int(found[1])


def read_header(path: str, plan: Plan) -> Header:
    """The header of a shard at a path or an address. OutputError if it is no whole shard of this plan."""
    try:
        file = ShardFile(path)
        try:
            return _checked(file, number_of(path), plan)
        finally:
            file.close()
    except FileNotFoundError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    except OtherExtractionError as error:
        raise OutputError(f"{path} is of another extraction than the {META} beside it says") from error
    except (OSError, JsonError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is no whole shard of maps: {error}") from error


class OtherExtractionError(Exception):
    """A header that another plan's fingerprint is in."""


def _checked(file: ShardFile, number: int, plan: Plan) -> Header:
    total = file.nbytes
    start = file.read(0, min(total, FIRST_READ))
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(LONGEST_HEADER, total - 8):
        raise JsonError("it has no header")
    text = start[8 : 8 + length] if 8 + length <= len(start) else file.read(8, 8 + length)
    described = parsed(bytes(text))
    said = parsed(described["__metadata__"][KEY].text())
    if said["plan"].held != plan.fingerprint:
        raise OtherExtractionError
    if said["shard"].number() != number:
        raise JsonError(f"it is a copy of shard {said['shard'].held}")
    header = Header(
        number,
        said["ids"].texts(),
        said["sources"].texts(),
        said["sizes"].pairs(1, LARGEST),
        _stamps(said),
        tuple(Failure(*Value(one.held, one.path).texts()) for one in said["errors"].each() if _is_failure(one)),
        _tensors(described, len(said["ids"].array()), plan, (8 + length, total)),
        file.version,
        None if (digest := said.get("digest")) is None else digest.text(),
        plan.directory,
    )
    _require_every_item(header, plan)
    return header


def _is_failure(one: Value) -> bool:
    if len(one.array()) != 3:
        raise one.mismatch("id, source and reason")
    return True


def _stamps(said: Value) -> list[Stamp | None]:
    """Those of every row; folders made before there were stamps have none."""
    if said.get("stamps") is None:
        return [None] * len(said["ids"].array())
    held = said["stamps"].array()
    told = iter(Value([one for one in held if one is not None], "stamps").pairs(-(2**63), 2**63 - 1))
    return [None if one is None else next(told) for one in held]


def _require_every_item(header: Header, plan: Plan) -> None:
    counts = {len(header.sources), len(header.sizes), len(header.stamps)}
    items = len(plan.items_of(header.number))
    if counts != {header.rows} or header.rows + len(header.failed) != items:
        raise JsonError(f"it tells {header.rows} images and {len(header.failed)} failures, expected {items}")


def _tensors(described: Value, rows: int, plan: Plan, within: tuple[int, int]) -> dict[str, Place]:
    """Places by name; they fill the file from the header's end to its own, without a gap."""
    tensors: dict[str, Place] = {}
    for level in plan.levels:
        if level.name in described.object():
            tensors[level.name] = _placed(described[level.name], level, plan.dtype, (rows,), within[0])
        else:
            names = [f"{level.name}/{row}" for row in range(rows)]
            tensors |= {name: _placed(described[name], level, plan.dtype, (), within[0]) for name in names}
    if others := described.object().keys() - tensors.keys() - {"__metadata__"}:
        raise JsonError(f"it holds {sorted(others)[0][:80]!r}, which is no level's")
    end = within[0]
    for place in sorted(tensors.values(), key=lambda place: place.start):
        if place.start != end:
            raise JsonError("its tensors lie over each other, or apart")
        end = place.end
    if end != within[1]:
        raise JsonError("it is cut short" if end > within[1] else "it holds more than its tensors")
    return tensors


def _placed(tensor: Value, level: StoredLevel, dtype: str, rows: tuple[int, ...], start: int) -> Place:
    """The place of a level's rows, or of one of them where `rows` is empty."""
    name, kind = DTYPES[dtype]
    tensor["dtype"].text((name,))
    shape = tuple(tensor["shape"].numbers(1, LARGEST, len(rows) + (3 if level.pooling == "none" else 1)))
    if shape[: len(rows) + 1] != (*rows, level.chs):
        raise tensor["shape"].mismatch(f"one that begins with {[*rows, level.chs]}")
    first, last = tensor["data_offsets"].numbers(count=2)
    if last - first != prod(shape) * kind.itemsize:
        raise tensor["data_offsets"].mismatch(f"{prod(shape) * kind.itemsize} bytes for {list(shape)}")
    return Place(kind, shape, start + first, start + last)
