"""Headers of shards, validated against the plan of their extraction."""

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

FIRST_READ = 2**16  # bytes, which contain most headers completely
DTYPES = {"float32": ("F32", torch.float32), "float16": ("F16", torch.float16), "bfloat16": ("BF16", torch.bfloat16)}
LARGEST = 2**31 - 1  # of sizes and shapes, which the index stores in 32 bits


class TensorSpan(NamedTuple):
    """The dtype and shape of a tensor in a file, and the offsets of its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a shard.

    Attributes:
        number: of the shard.
        ids, sources, sizes, stamps: of every row.
        failed: images without a row.
        tensors: spans by name.
        version: of the file that the header was read from.
        digest: SHA-256 of the content, if the file has one.
        directory: where relative sources start.
        stored: for every row, its index in the file, if some rows of the file are left out.
    """

    number: int
    ids: Sequence[str]
    sources: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    stamps: Sequence[Stamp | None]
    failed: tuple[Failure, ...]
    tensors: dict[str, TensorSpan]
    version: Version | None
    digest: str | None = None
    directory: str = ""
    stored: Sequence[int] | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def every_id(self) -> list[str]:
        """The ids of rows and failures."""
        return [*self.ids, *(failure.id for failure in self.failed)]

    def where(self, keep: Callable[[str], bool]) -> "Header":
        """The header with only the rows and failures whose ids `keep` accepts."""
        rows = [row for row, id_ in enumerate(self.ids) if keep(id_)]
        failed = tuple(failure for failure in self.failed if keep(failure.id))
        if (len(rows), len(failed)) == (self.rows, len(self.failed)):
            return self
        by_row = {key: [getattr(self, key)[row] for row in rows] for key in ("ids", "sources", "sizes", "stamps")}
        return replace(self, **by_row, failed=failed, stored=[self.stored_row(row) for row in rows])

    def stored_row(self, row: int) -> int:
        """The index of a row within the file."""
        return row if self.stored is None else self.stored[row]

    def shape(self, level: str, row: int) -> tuple[int, ...]:
        return self.span(level, row).shape

    def span(self, level: str, row: int) -> TensorSpan:
        """The span of a row's map in the file."""
        row = self.stored_row(row)
        if level not in self.tensors:
            return self.tensors[f"{level}/{row}"]
        dtype, (rows, *shape), start, end = self.tensors[level]
        step = (end - start) // rows
        return TensorSpan(dtype, tuple(shape), start + row * step, start + (row + 1) * step)


def number_of(path: str) -> int:
    """The number of a shard, from the name of its file."""
    match = re.search(r"maps-([0-9]{6})\.safetensors$", path)
    assert match is not None
    return int(match[1])


def read_header(path: str, plan: Plan) -> Header:
    """The header of a shard at a path or an address; OutputError if it is not a complete shard of this plan."""
    try:
        file = ShardFile(path)
        try:
            return _checked(file, number_of(path), plan)
        finally:
            file.close()
    except FileNotFoundError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    except OtherExtractionError as error:
        raise OutputError(f"{path} is of another extraction than the {META} beside it") from error
    except (OSError, JsonError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path} is not a complete shard of maps: {error}") from error


class OtherExtractionError(Exception):
    """A header has the fingerprint of another plan."""


def _checked(file: ShardFile, number: int, plan: Plan) -> Header:
    total = file.nbytes
    start = file.read(0, min(total, FIRST_READ))
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= min(LONGEST_HEADER, total - 8):
        raise JsonError("it has no header")
    text = start[8 : 8 + length] if 8 + length <= len(start) else file.read(8, 8 + length)
    tensors = parsed(bytes(text))
    metadata = parsed(tensors["__metadata__"][KEY].text())
    if metadata["plan"].held != plan.fingerprint:
        raise OtherExtractionError
    if metadata["shard"].number() != number:
        raise JsonError(f"it is a copy of shard {metadata['shard'].held}")
    header = Header(
        number,
        metadata["ids"].texts(),
        metadata["sources"].texts(),
        metadata["sizes"].pairs(1, LARGEST),
        _stamps(metadata),
        tuple(_failure(value) for value in metadata["errors"].each()),
        _spans(tensors, len(metadata["ids"].array()), plan, (8 + length, total)),
        file.version,
        None if (digest := metadata.get("digest")) is None else digest.text(),
        plan.directory,
    )
    _require_every_item(header, plan)
    return header


def _failure(value: Value) -> Failure:
    if len(value.array()) != 3:
        raise value.mismatch("id, source and reason")
    return Failure(*value.texts())


def _stamps(metadata: Value) -> list[Stamp | None]:
    """The stamp of every row; None in files of older versions."""
    if metadata.get("stamps") is None:
        return [None] * len(metadata["ids"].array())
    stamps = metadata["stamps"].array()
    valid = iter(Value([stamp for stamp in stamps if stamp is not None], "stamps").pairs(-(2**63), 2**63 - 1))
    return [None if stamp is None else next(valid) for stamp in stamps]


def _require_every_item(header: Header, plan: Plan) -> None:
    counts = {len(header.sources), len(header.sizes), len(header.stamps)}
    items = len(plan.items_of(header.number))
    if counts != {header.rows} or header.rows + len(header.failed) != items:
        raise JsonError(f"it lists {header.rows} images and {len(header.failed)} failures, expected {items}")


def _spans(tensors: Value, rows: int, plan: Plan, data: tuple[int, int]) -> dict[str, TensorSpan]:
    """Spans by name, which fill the data section of the file without gaps."""
    spans: dict[str, TensorSpan] = {}
    for level in plan.levels:
        if level.name in tensors.object():
            spans[level.name] = _span(tensors[level.name], level, plan.dtype, (rows,), data[0])
        else:
            names = [f"{level.name}/{row}" for row in range(rows)]
            spans |= {name: _span(tensors[name], level, plan.dtype, (), data[0]) for name in names}
    if others := tensors.object().keys() - spans.keys() - {"__metadata__"}:
        raise JsonError(f"it holds {sorted(others)[0][:80]!r}, which is not a level")
    end = data[0]
    for span in sorted(spans.values(), key=lambda span: span.start):
        if span.start != end:
            raise JsonError("its tensors overlap or have gaps between them")
        end = span.end
    if end != data[1]:
        raise JsonError("it is cut short" if end > data[1] else "it holds more than its tensors")
    return spans


def _span(tensor: Value, level: StoredLevel, dtype: str, rows: tuple[int, ...], start: int) -> TensorSpan:
    """The span of all rows of a level, or of a single row if `rows` is empty."""
    name, kind = DTYPES[dtype]
    tensor["dtype"].text((name,))
    shape = tuple(tensor["shape"].numbers(1, LARGEST, len(rows) + (3 if level.pooling == "none" else 1)))
    if shape[: len(rows) + 1] != (*rows, level.chs):
        raise tensor["shape"].mismatch(f"one that begins with {[*rows, level.chs]}")
    first, last = tensor["data_offsets"].numbers(count=2)
    if last - first != prod(shape) * kind.itemsize:
        raise tensor["data_offsets"].mismatch(f"{prod(shape) * kind.itemsize} bytes for {list(shape)}")
    return TensorSpan(kind, shape, start + first, start + last)
