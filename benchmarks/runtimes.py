"""Forward latency on every runtime of `optimize`, and on the runtime that runtime="auto" selects, relative to timm.

Ratios above 1 are faster. One thread, the model's own image size; CPU time, interleaved, medians; each candidate runs
in its own process, auto too. "best" is the fastest of the other candidates. "ready" is the CPU seconds of `optimize`
beyond imports: the first time, each candidate with its own empty cache, and in a second process, from that cache.

"of the peak" compares the best candidate with the peak of the processor: the operations per second of the model's
convolutions and matrix products, relative to those of a product of two large matrices in the same thread. A value near
1 cannot be improved. Depthwise convolutions and elementwise functions are limited by memory bandwidth and stay far
below 1.

python benchmarks/runtimes.py [--bfloat16] [NAME ...]
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import geometric_mean
from time import process_time

import torch
from extractors import BFLOAT16, RUNTIMES, builders, images
from interleaved_timing import FAMILIES, Candidate, Timing, timed
from subprocess_runs import machine
from torch.utils.flop_counter import FlopCounterMode

import featx

BATCHES = (1, 16)
SIDE, REPEATS = 2048, 5  # of the square matrices whose product defines the peak; number of products
Cells = dict[str, float]


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or FAMILIES
    optimizations = tuple(BFLOAT16 if "--bfloat16" in sys.argv else RUNTIMES)
    torch.set_num_threads(1)
    columns = (*optimizations, "best", "of the peak", "auto selects", "ready, CPU s", "from the cache, CPU s")
    print(f"{machine()}\n\n| model | batch | timm ms | {' | '.join(columns)} |\n{'|---' * (len(columns) + 3)}|")
    rows: dict[int, list[Cells]] = {batch: [] for batch in BATCHES}
    shares: list[float] = []
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            cases = [builders(name, batch, optimizations=optimizations, cache=cache) for batch in BATCHES]
            first = timed(*cases, generations=1)
            cached_seconds = [{name: seconds_in_new_process(case[name]) for name in optimizations} for case in cases]
        for batch, timings, cached in zip(BATCHES, first, cached_seconds, strict=True):
            rows[batch].append(ratios(timings, optimizations))
            shares.append(rows[batch][-1][chosen(timings, optimizations)] / rows[batch][-1]["best"])
            share = operations(name) * batch / timings["timm"].forward * rows[batch][-1]["best"] / peak()
            print(line(name, batch, timings, cached, rows[batch][-1], share), flush=True)
    for batch in BATCHES:
        means = (geometric_mean(row[candidate] for row in rows[batch]) for candidate in rows[batch][0])
        print(f"| geometric mean | {batch} | | {' | '.join(f'{mean:.2f}' for mean in means)} | | | | |")
    print(f"\nThe runtime that {optimizations[-1]} selects reaches at least {min(shares):.2f} of the best throughput.")


def operations(name: str) -> int:
    """Count the operations of the matrix products and convolutions of one image, in the optimized model."""
    model = featx.optimize(featx.create_model(name, features_only=True).eval())
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model(images(name, 1, None))
    return counted.get_total_flops()


def peak() -> float:
    """Return the operations per second of this thread in the fastest of several products of large matrices."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    seconds = []
    for _ in range(REPEATS):
        start = process_time()
        torch.mm(a, b)
        seconds.append(process_time() - start)
    return 2 * SIDE**3 / min(seconds)


def seconds_in_new_process(builder: Callable[[], Candidate]) -> float:
    """Return the CPU seconds to build a candidate in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(_seconds, builder).result()


def _seconds(builder: Callable[[], Candidate]) -> float:
    return builder().build_seconds


def ratios(timings: Mapping[str, Timing], optimizations: tuple[str, ...]) -> Cells:
    """Return the speedup of each candidate over timm, and the best of all but the last candidate, which is auto."""
    row = {candidate: timings["timm"].forward / timings[candidate].forward for candidate in optimizations}
    return {**row, "best": max(row[candidate] for candidate in optimizations[:-1])}


def chosen(timings: Mapping[str, Timing], optimizations: tuple[str, ...]) -> str:
    """Return the candidate whose runtime auto, the last candidate, selected."""
    selected = timings[optimizations[-1]].runtime
    return next(candidate for candidate in optimizations if timings[candidate].runtime == selected)


def line(
    name: str, batch: int, timings: Mapping[str, Timing], cached_seconds: Mapping[str, float], row: Cells, share: float
) -> str:
    """Return a row of the table. share: throughput relative to the peak."""
    cells = [*(f"{ratio:.2f}" for ratio in row.values()), f"{share:.2f}"]
    cells.append(timings[list(cached_seconds)[-1]].runtime)
    cells.append(", ".join(f"{candidate} {timings[candidate].build_seconds:.1f}" for candidate in cached_seconds))
    cells.append(", ".join(f"{candidate} {seconds:.1f}" for candidate, seconds in cached_seconds.items()))
    return f"| {name} | {batch} | {timings['timm'].forward * 1e3:.0f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
