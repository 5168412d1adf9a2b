"""The function `stats`, which counts the images in a folder of maps and computes statistics of the maps."""

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
from .filesystems import join, size_of
from .growth import current_rows
from .header import Header, number_of, read_header
from .meta import Meta, require_meta
from .output_folder import require_complete, shards_in
from .shard import ShardFile, shard_name

READ = 8 * 2**20  # bytes per read, so that memory use is constant


@dataclass(slots=True)
class LevelStatistics:
    """Statistics of a level over all images, channels and cells.

    Attributes:
        name: of the level.
        chs: channels.
        reduction: of the image size.
        pooling: of the maps.
        shapes: number of images by the shape of their map, (chs, h, w) or (chs,).
        values: number of finite values, of which the following are; NaN if there are none.
        mean: of the values.
        std: population standard deviation.
        low: minimum.
        high: maximum.
        not_finite: ids of images whose maps have NaN or infinite values, which `featx.extract` never writes.
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
    """Statistics of a folder of maps.

    Attributes:
        model: name.
        dtype: of the stored values.
        planned: numbers of images and shards of the finished folder.
        shards: complete shards.
        nbytes: bytes of these shards.
        written: images with maps.
        failed: number of failed images by reason.
        damaged: reasons, by the path of each file that is not a complete shard of this extraction.
        levels: statistics of each level.
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
        """Number of images that are in no shard yet."""
        return self.planned[0] - self.written - self.failed.total()

    @property
    def sound(self) -> bool:
        """Whether all files are complete and all values finite."""
        return not self.damaged and not any(level.not_finite for level in self.levels)


def stats(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Statistics:
    """Count the images of a folder and compute statistics of its maps.

    Every value is read once. Sums are in double precision, and memory use is constant.

    Args:
        folder: a path, or an address that fsspec supports.
        progress: called with the number of finished files and the number of all files.
        partial: allow an unfinished folder.

    Returns:
        The statistics.

    Raises:
        OutputError: the folder has no maps, or is unfinished.
    """
    folder = os.fspath(folder)
    meta, names = require_meta(folder), shards_in(folder)
    require_complete(f"{folder} is unfinished", meta, names, partial)
    plan = meta.plan
    statistics = Statistics(plan.decided["model"], plan.dtype, (meta.images, meta.shards))
    statistics.levels = [
        LevelStatistics(level.name, level.chs, level.reduction, level.pooling) for level in plan.levels
    ]
    moments = [_Moments() for _ in statistics.levels]
    headers = current_rows(list(_readable_headers(folder, meta, statistics)), meta)
    for done, header in enumerate(headers):
        progress(done, len(headers))
        statistics.written += header.rows
        statistics.failed.update(failure.reason for failure in header.failed)
        for level, moment in zip(statistics.levels, moments, strict=True):
            _measure(join(folder, shard_name(header.number)), header, level, moment)
    progress(len(headers), len(headers))
    for level, moment in zip(statistics.levels, moments, strict=True):
        moment.write_to(level)
    return statistics


def _readable_headers(folder: str, meta: Meta, statistics: Statistics) -> Iterator[Header]:
    """Headers of the complete shards, which are counted; other shards are added to `damaged`."""
    for name in shards_in(folder):
        path, plan = join(folder, name), meta.generation_of(number_of(name))
        if plan is None:  # of an unfinished generation
            continue
        try:
            header = read_header(path, plan)
        except OutputError as error:
            statistics.damaged[path] = str(error)
            continue
        statistics.shards += 1
        statistics.nbytes += size_of(path)
        yield header


def _measure(path: str, header: Header, level: LevelStatistics, moments: "_Moments") -> None:
    ids = header.ids
    for first, rows in _rows(path, header, level.name):
        level.shapes[tuple(rows.shape[1:])] += len(rows)
        finite = rows.isfinite()
        row_is_finite = finite.flatten(1).all(1)
        level.not_finite += [ids[first + row] for row, is_finite in enumerate(row_is_finite.tolist()) if not is_finite]
        moments.add(rows if row_is_finite.all() else rows[finite])


def _rows(path: str, header: Header, level: str) -> Iterator[tuple[int, Tensor]]:
    """The rows of a level in tensors (rows, ...) of about READ bytes, each with the index of its first row."""
    row, file = 0, ShardFile(path, header.version)
    while row < header.rows:
        dtype, shape, start, end = header.span(level, row)
        stacked = level in header.tensors and header.stored is None
        count = min(max(1, READ // max(1, end - start)), header.rows - row) if stacked else 1
        content = file.read(start, start + count * (end - start))
        yield row, torch.frombuffer(content, dtype=dtype).reshape(count, *shape)
        row += count


class _Moments:
    """Running count, mean, sum of squared deviations, minimum and maximum of values that are added in parts.

    Parts are combined as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
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

    def write_to(self, level: LevelStatistics) -> None:
        level.values = self.count
        if self.count:
            level.mean, level.std = self.mean, sqrt(self.squares / self.count)
            level.low, level.high = self.low, self.high


def as_json(statistics: Statistics) -> dict[str, Any]:
    """The statistics as a JSON object; a level without values has null for mean, std, low and high."""
    return {
        "model": statistics.model,
        "dtype": statistics.dtype,
        "images": {
            "planned": statistics.planned[0],
            "written": statistics.written,
            "failed": statistics.failed.total(),
            "missing": statistics.missing,
        },
        "files": {"planned": statistics.planned[1], "there": statistics.shards, "bytes": statistics.nbytes},
        "levels": [_level_as_json(level) for level in statistics.levels],
        "errors": dict(statistics.failed.most_common()),
        "damaged": statistics.damaged,
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
