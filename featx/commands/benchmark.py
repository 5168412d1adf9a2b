"""How fast the ways to get a model's maps are, on this machine."""

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
TURNS = (5, 50)  # of every way: the fewest and the most
SECONDS = 1.0  # of forwards of the slowest way that more turns are made for

Extractor = featx.FeatureExtractWrapper


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured: a model by name, a batch of images of a size, a device, and the dtype of the optimised."""

    name: str
    batch: int
    size: int | None
    device: torch.device
    dtype: torch.dtype


@dataclass(slots=True)
class Row:
    """One way of one model and batch.

    seconds: of a forward, the median. ratio: to the model as it comes; above 1 is faster. mebibytes: by which memory
    grew in a forward, None where that cannot be seen. difference: the largest from the model as it comes, relative to
    its largest value; cosine: in a lower precision, the least similarity of a level's maps instead. ready: seconds of
    processor time to make it without a cache. chosen: whether runtime="auto" takes it among those measured. refused:
    why the runtime cannot run the model; nothing was measured then.
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


def measure(task: Task, runtimes: list[Runtime], telling: Callable[[str], None]) -> list[Row]:
    """A row for the model as it comes, then one for each runtime; with random weights, which take the same time."""
    torch.manual_seed(0)
    model = featx.create_model(task.name, features_only=True, device=task.device).eval()
    x = _images(model, task)
    rows = [Row(task.name, task.batch, AS_IT_COMES, _word(torch.float32))]
    optimized: dict[str, OptimizedExtractor] = {}
    for runtime in runtimes:
        telling(f"{task.name}, batch {task.batch}: making {runtime} …")
        rows.append(Row(task.name, task.batch, runtime, _word(task.dtype)))
        made = _made(model, x, task, runtime, rows[-1])
        if made is not None:
            optimized[runtime] = made
    telling(f"{task.name}, batch {task.batch}: measuring …")
    chosen = choose(optimized, x, {}).runtime if optimized else None
    for row in rows:
        row.chosen = row.runtime == chosen
    ways = [(row, optimized.get(row.runtime, model)) for row in rows if row.refused is None]
    with torch.inference_mode():
        _compare(ways, x)
        _take_turns(ways, x)
    return rows


def _images(model: Extractor, task: Task) -> Tensor:
    stated = model.data_config
    height, width = (task.size, task.size) if task.size else (stated.size if stated is not None else (224, 224))
    return smooth_noise(torch.empty(task.batch, model.in_chans or 3, height, width, device=task.device))


def _made(model: Extractor, x: Tensor, task: Task, runtime: Runtime, row: Row) -> OptimizedExtractor | None:
    start = process_time()
    dtype = None if task.dtype is torch.float32 else task.dtype
    try:
        made = featx.optimize(model, runtime=runtime, dtype=dtype, example=x, cache=False)
    except featx.FeatxError as error:
        row.refused = str(error)
        return None
    row.ready = process_time() - start
    row.cosine = None if made.agreement is None else min(made.agreement.values())
    return made


def _compare(ways: list[tuple[Row, Extractor]], x: Tensor) -> None:
    """Fill in differences from the first way, and how memory grows; every way is run once before."""
    reference = maps_in(ways[0][1](x))
    for row, model in ways:
        maps = maps_in(model(x))
        if row.cosine is None and model is not ways[0][1]:
            row.difference = max(_difference(map_, true) for map_, true in zip(maps, reference, strict=True))
        del maps
        row.mebibytes = _growth(model, x)


def _difference(ours: Tensor, true: Tensor) -> float:
    return ((ours.float() - true.float()).abs().max() / true.float().abs().max()).item()


def _growth(model: Extractor, x: Tensor) -> float | None:
    """By how many MiB memory grows at most in a forward, its maps included."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        return (torch.cuda.max_memory_allocated(x.device) - before) / 2**20
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None
    return_freed_memory()
    forget.write_text("5")  # the peak so far
    before = _kibibytes(status, "VmRSS")
    model(x)
    return max(0, _kibibytes(status, "VmHWM") - before) / 1024


def _kibibytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def _take_turns(ways: list[tuple[Row, Extractor]], x: Tensor) -> None:
    """Time the ways one after another, again and again, so that what else runs on the machine hits all of them."""
    taken: list[list[float]] = [[_timed(model, x)] for _, model in ways]
    fewest, most = TURNS
    turns = min(most, max(fewest, ceil(SECONDS / max(first[0] for first in taken))))
    order, shuffle = [*range(len(ways))], Random(0).shuffle
    for _ in range(turns):
        shuffle(order)  # a forward finds the memory that the one before it left behind
        for way in order:
            taken[way].append(_timed(ways[way][1], x))
    for seconds, (row, _) in zip(taken, ways, strict=True):
        row.seconds = median(seconds[1:])
        row.images_per_second = len(x) / row.seconds
        assert ways[0][0].seconds is not None
        row.ratio = ways[0][0].seconds / row.seconds


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
