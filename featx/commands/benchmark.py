"""Measurement of latency and memory of a model, unmodified and on each runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

import featx
from featx.runtime.agreement import smooth_noise
from featx.runtime.allocator import return_freed_memory
from featx.runtime.auto import choose
from featx.runtime.optimization import Runtime
from featx.runtime.optimized import OptimizedExtractor
from featx.wrappers.extractor import maps_in

AS_IT_COMES = "as it comes"
TURNS = (5, 50)  # minimum and maximum number of forwards per variant
SECONDS = 1.0  # of forwards of the slowest variant, which determines the number of turns

Extractor = featx.FeatureExtractWrapper


@dataclass(frozen=True, slots=True)
class Task:
    """A measurement: the name of a model, the batch and image size, the device, and the dtype of optimized models."""

    name: str
    batch: int
    size: int | None
    device: torch.device
    dtype: torch.dtype


@dataclass(slots=True)
class Row:
    """The result for one variant of a model and a batch size.

    Attributes:
        model: name.
        batch: images.
        runtime: of the variant.
        dtype: of the variant.
        seconds: median latency of a forward.
        images_per_second: throughput.
        ratio: speed-up over the unmodified model; above 1 is faster.
        mebibytes: growth of memory in a forward; None if it cannot be measured.
        difference: largest difference from the unmodified model, relative to its largest value.
        cosine: in a lower precision, the lowest cosine similarity of a level's maps instead of the difference.
        ready: CPU seconds to build the variant without a cache.
        chosen: whether runtime="auto" chooses it among the measured ones.
        refused: why the runtime cannot run the model, in which case nothing is measured.
    """

    model: str
    batch: int
    runtime: str
    dtype: str
    seconds: float | None = None
    images_per_second: float | None = None
    ratio: float | None = None
    mebibytes: float | None = None
    difference: float | None = None
    cosine: float | None = None
    ready: float | None = None
    chosen: bool = False
    refused: str | None = None


def measure(task: Task, runtimes: list[Runtime], report: Callable[[str], None]) -> list[Row]:
    """A row for the unmodified model, then one for each runtime. Weights are random, which does not affect speed.

    Args:
        task: to measure.
        runtimes: available ones.
        report: called with the current step.
    """
    torch.manual_seed(0)
    model = featx.create_model(task.name, features_only=True, device=task.device).eval()
    x = _images(model, task)
    rows = [Row(task.name, task.batch, AS_IT_COMES, _word(torch.float32))]
    optimized: dict[str, OptimizedExtractor] = {}
    for runtime in runtimes:
        report(f"{task.name}, batch {task.batch}: making {runtime} …")
        rows.append(Row(task.name, task.batch, runtime, _word(task.dtype)))
        extractor = _optimize(model, x, task, runtime, rows[-1])
        if extractor is not None:
            optimized[runtime] = extractor
    report(f"{task.name}, batch {task.batch}: measuring …")
    chosen = choose(optimized, x, {}).runtime if optimized else None
    for row in rows:
        row.chosen = row.runtime == chosen
    variants = [(row, optimized.get(row.runtime, model)) for row in rows if row.refused is None]
    with torch.inference_mode():
        _compare(variants, x)
        _time_interleaved(variants, x)
    return rows


def _images(model: Extractor, task: Task) -> Tensor:
    config = model.data_config
    height, width = (task.size, task.size) if task.size else (config.size if config is not None else (224, 224))
    return smooth_noise(torch.empty(task.batch, model.in_chans or 3, height, width, device=task.device))


def _optimize(model: Extractor, x: Tensor, task: Task, runtime: Runtime, row: Row) -> OptimizedExtractor | None:
    """The optimized model, or None if the runtime cannot run it; fills in the row."""
    start = process_time()
    dtype = None if task.dtype is torch.float32 else task.dtype
    try:
        extractor = featx.optimize(model, runtime=runtime, dtype=dtype, example=x, cache=False)
    except featx.FeatxError as error:
        row.refused = str(error)
        return None
    row.ready = process_time() - start
    row.cosine = None if extractor.agreement is None else min(extractor.agreement.values())
    return extractor


def _compare(variants: list[tuple[Row, Extractor]], x: Tensor) -> None:
    """Fill in the difference from the first variant and the growth of memory, after a warm-up run of each variant."""
    reference = maps_in(variants[0][1](x))
    for row, model in variants:
        maps = maps_in(model(x))
        if row.cosine is None and model is not variants[0][1]:
            row.difference = max(_difference(map_, true) for map_, true in zip(maps, reference, strict=True))
        del maps
        row.mebibytes = _growth(model, x)


def _difference(ours: Tensor, true: Tensor) -> float:
    return ((ours.float() - true.float()).abs().max() / true.float().abs().max()).item()


def _growth(model: Extractor, x: Tensor) -> float | None:
    """Peak growth of memory in a forward in MiB, including its maps."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        return (torch.cuda.max_memory_allocated(x.device) - before) / 2**20
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    return_freed_memory()
    forget.write_text("5")  # resets the peak
    before = _kibibytes(status, "VmRSS")
    model(x)
    return max(0, _kibibytes(status, "VmHWM") - before) / 1024


def _kibibytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def _time_interleaved(variants: list[tuple[Row, Extractor]], x: Tensor) -> None:
    """Time the variants in interleaved turns, so that other load on the machine affects all of them equally."""
    times: list[list[float]] = [[_timed(model, x)] for _, model in variants]
    fewest, most = TURNS
    turns = min(most, max(fewest, ceil(SECONDS / max(first[0] for first in times))))
    order, shuffle = [*range(len(variants))], Random(0).shuffle
    for _ in range(turns):
        shuffle(order)  # because a forward depends on the memory that the previous one freed
        for index in order:
            times[index].append(_timed(variants[index][1], x))
    for seconds, (row, _) in zip(times, variants, strict=True):
        row.seconds = median(seconds[1:])
        row.images_per_second = len(x) / row.seconds
        assert variants[0][0].seconds is not None
        row.ratio = variants[0][0].seconds / row.seconds


def _timed(model: Any, x: Tensor) -> float:
    _wait(x)
    start = perf_counter()
    model(x)
    _wait(x)
    return perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
