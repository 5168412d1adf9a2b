"""Time of a forward on every runtime of `optimize`, and on the one that runtime="auto" takes, as ratios to timm's.

Above 1 is faster. Of one thread, at the model's own size; CPU time, medians of turns, each way in a process of its own,
auto too. The best is of the other ways. Ready says how many CPU seconds `optimize` took beyond imports: the first time,
each way with an empty cache of its own, and in a second process, from that cache.

Of the peak says how near the best way is to what the processor can do: the operations of the model's convolutions and
products, in the time of a forward, beside those of a product of two large matrices in the same thread. What is near 1
has nothing left to win; what is far below it are models of depthwise convolutions and functions of single values, which
wait for memory.

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
from contestants import BFLOAT16, RUNTIMES, images, ways
from fresh import machine
from torch.utils.flop_counter import FlopCounterMode
from turns import FAMILIES, Made, Taken, timed

import featx

BATCHES = (1, 16)
SIDE, PRODUCTS = (
    2048,
    5,
)  # of square matrices, whose product no forward is faster than, and how often they are multiplied
Cells = dict[str, float]


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or FAMILIES
    optimizations = tuple(BFLOAT16 if "--bfloat16" in sys.argv else RUNTIMES)
    torch.set_num_threads(1)
    columns = (*optimizations, "best", "of the peak", "auto takes", "ready at first, CPU s", "from the cache, CPU s")
    print(f"{machine()}\n\n| model | batch | timm ms | {' | '.join(columns)} |\n{'|---' * (len(columns) + 3)}|")
    rows: dict[int, list[Cells]] = {batch: [] for batch in BATCHES}
    shares: list[float] = []
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            cases = [ways(name, batch, optimizations=optimizations, cache=cache) for batch in BATCHES]
            first = timed(*cases, generations=1)
            later = [{way: ready(case[way]) for way in optimizations} for case in cases]
        for batch, taken, found in zip(BATCHES, first, later, strict=True):
            rows[batch].append(ratios(taken, optimizations))
            shares.append(rows[batch][-1][chosen(taken, optimizations)] / rows[batch][-1]["best"])
            share = operations(name) * batch / taken["timm"].forward * rows[batch][-1]["best"] / peak()
            print(line(name, batch, taken, found, rows[batch][-1], share), flush=True)
    for batch in BATCHES:
        means = (geometric_mean(row[way] for row in rows[batch]) for way in rows[batch][0])
        print(f"| geometric mean | {batch} | | {' | '.join(f'{mean:.2f}' for mean in means)} | | | | |")
    print(f"\nThe runtime that {optimizations[-1]} takes makes {min(shares):.2f} of the best, or more.")


def operations(name: str) -> int:
    """Of the products and convolutions of one image, after blocks with a faster form have been given it."""
    model = featx.optimize(featx.create_model(name, features_only=True).eval())
    with torch.inference_mode(), FlopCounterMode(display=False) as counted:
        model(images(name, 1, None))
    return counted.get_total_flops()


def peak() -> float:
    """Operations a second of this thread in a product of large matrices, the fastest of some."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    seconds = []
    for _ in range(PRODUCTS):
        start = process_time()
        torch.mm(a, b)
        seconds.append(process_time() - start)
    return 2 * SIDE**3 / min(seconds)


def ready(make: Callable[[], Made]) -> float:
    """CPU seconds to make a way in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(_seconds, make).result()


def _seconds(make: Callable[[], Made]) -> float:
    return make().seconds


def ratios(taken: Mapping[str, Taken], optimizations: tuple[str, ...]) -> Cells:
    """How many times as fast as timm's each way is, and the best of all but the last, which is auto."""
    row = {way: taken["timm"].forward / taken[way].forward for way in optimizations}
    return {**row, "best": max(row[way] for way in optimizations[:-1])}


def chosen(taken: Mapping[str, Taken], optimizations: tuple[str, ...]) -> str:
    """The way that has the runtime that auto, the last of them, takes."""
    return next(way for way in optimizations if taken[way].runtime == taken[optimizations[-1]].runtime)


def line(
    name: str, batch: int, taken: Mapping[str, Taken], later: Mapping[str, float], row: Cells, share: float
) -> str:
    """A row of the table. share: of the peak."""
    cells = [*(f"{ratio:.2f}" for ratio in row.values()), f"{share:.2f}"]
    cells.append(taken[list(later)[-1]].runtime)
    cells.append(", ".join(f"{way} {taken[way].making:.1f}" for way in later))
    cells.append(", ".join(f"{way} {seconds:.1f}" for way, seconds in later.items()))
    return f"| {name} | {batch} | {taken['timm'].forward * 1e3:.0f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
