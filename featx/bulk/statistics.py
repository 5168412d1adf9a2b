"""stats: what is in a folder of maps, counted and measured from the files themselves."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf, nan, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OutputError
from .filesystems import joined, size_of
from .growth import current
from .header import Header, number_of, read_header
from .meta import Meta, require_meta
from .output_folder import require_complete, shards_in
from .shard import ShardFile, shard_name

READ = 8 * 2**20  # bytes at once, so that memory does not grow with files


@dataclass(slots=True)
class LevelStatistics:
    """The numbers of a level, over all images, channels and cells.

    shapes: images by the shape of their map, (chs, h, w) or (chs,). values: numbers that are finite, which mean, std
    (of all of them, not a sample's), low and high are of; NaN without any. not_finite: ids of images whose map holds
    NaN or infinite values, which `featx.extract` never writes.
    """

    name: str
    chs: int
    reduction: int
    pooling: str
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    values: int = 0
    mean: float = nan
    std: float = nan
    low: float = nan
    high: float = nan
    not_finite: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Statistics:
    """What is in a folder of maps.

    planned: images and shards that a finished run has. written, failed: images with maps, and without, the latter as
    counts by reason. damaged: files that are no whole shards of this extraction, and why. nbytes: of all shards.
    """

    model: str
    dtype: str
    planned: tuple[int, int]
    shards: int = 0
    nbytes: int = 0
    written: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    damaged: dict[str, str] = field(default_factory=dict)
    levels: list[LevelStatistics] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Images that are in no shard yet."""
        return self.planned[0] - self.written - self.failed.total()

    @property
    def sound(self) -> bool:
        """Whether every file is whole and every number finite."""
        return not self.damaged and not any(level.not_finite for level in self.levels)


def stats(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Statistics:
    """Count and measure what is in a folder of maps, or at an address that fsspec knows; every number is read once.

    Sums are in double precision, and memory stays flat. progress: called with the files done and all there are.
    partial: the folder may be unfinished. Raises OutputError if the folder is none of maps, or unfinished.
    """
    folder = os.fspath(folder)
    meta, names = require_meta(folder), shards_in(folder)
    require_complete(f"{folder} is unfinished", meta, names, partial)
    plan = meta.plan
    found = Statistics(plan.decided["model"], plan.dtype, (meta.images, meta.shards))
    found.levels = [LevelStatistics(one.name, one.chs, one.reduction, one.pooling) for one in plan.levels]
    moments = [_Moments() for _ in found.levels]
    headers = current(list(_sound(folder, meta, found)), meta)
    for done, header in enumerate(headers):
        progress(done, len(headers))
        found.written += header.rows
        found.failed.update(one.reason for one in header.failed)
        for level, moment in zip(found.levels, moments, strict=True):
            _measure(joined(folder, shard_name(header.number)), header, level, moment)
    progress(len(headers), len(headers))
    for level, moment in zip(found.levels, moments, strict=True):
        moment.tell(level)
    return found


def _sound(folder: str, meta: Meta, found: Statistics) -> Iterator[Header]:
    """Headers of the shards that are whole; those that are not are told."""
    for name in shards_in(folder):
        path, plan = joined(folder, name), meta.generation_of(number_of(name))
        if plan is None:  # of a generation that is not finished
            continue
        try:
            header = read_header(path, plan)
        except OutputError as error:
            found.damaged[path] = str(error)
            continue
        found.shards += 1
        found.nbytes += size_of(path)
        yield header


def _measure(path: str, header: Header, level: LevelStatistics, moments: "_Moments") -> None:
    ids = header.ids
    for first, rows in _rows(path, header, level.name):
        level.shapes[tuple(rows.shape[1:])] += len(rows)
        finite = rows.isfinite()
        whole = finite.flatten(1).all(1)
        level.not_finite += [ids[first + row] for row, is_whole in enumerate(whole.tolist()) if not is_whole]
        moments.add(rows if whole.all() else rows[finite])


def _rows(path: str, header: Header, level: str) -> Iterator[tuple[int, Tensor]]:
    """The level's rows in their order, (rows, ...) as many as are read at once, with the number of the first."""
    row, file = 0, ShardFile(path, header.version)
    while row < header.rows:
        dtype, shape, start, end = header.place(level, row)
        stacked = level in header.tensors and header.stored is None
        count = min(max(1, READ // max(1, end - start)), header.rows - row) if stacked else 1
        content = file.read(start, start + count * (end - start))
        yield row, torch.frombuffer(content, dtype=dtype).reshape(count, *shape)
        row += count


class _Moments:
    """Count, mean and squared deviations of numbers that come in parts, and their range.

    Parts are joined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), which does not lose digits where the mean is large.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = inf, -inf

    def add(self, part: Tensor) -> None:
        if not part.numel():
            return
        self.low, self.high = min(self.low, part.min().item()), max(self.high, part.max().item())
        values = part.double()
        mean = values.mean().item()
        squares = (values - mean).square_().sum().item()
        count, apart = self.count + part.numel(), mean - self.mean
        self.squares += squares + apart**2 * self.count * part.numel() / count
        self.mean += apart * part.numel() / count
        self.count = count

    def tell(self, level: LevelStatistics) -> None:
        level.values = self.count
        if self.count:
            level.mean, level.std = self.mean, sqrt(self.squares / self.count)
            level.low, level.high = self.low, self.high


def as_json(found: Statistics) -> dict[str, Any]:
    """The statistics as JSON has them; a level without numbers has null for each."""
    return {
        "model": found.model,
        "dtype": found.dtype,
        "images": {
            "planned": found.planned[0],
            "written": found.written,
            "failed": found.failed.total(),
            "missing": found.missing,
        },
        "files": {"planned": found.planned[1], "there": found.shards, "bytes": found.nbytes},
        "levels": [_level_as_json(level) for level in found.levels],
        "errors": dict(found.failed.most_common()),
        "damaged": found.damaged,
    }


def _level_as_json(level: LevelStatistics) -> dict[str, Any]:
    numbers = {key: getattr(level, key) if level.values else None for key in ("mean", "std", "low", "high")}
    return {
        **{key: getattr(level, key) for key in ("name", "chs", "reduction", "pooling")},
        "shapes": [{"shape": list(shape), "images": count} for shape, count in level.shapes.most_common()],
        "values": level.values,
        **numbers,
        "not_finite": level.not_finite,
    }
