"""Time of a forward on every runtime of `optimize`, and on the one that runtime="auto" takes, as ratios to timm's.

Above 1 is faster. Of one thread, at the model's own size; CPU time, medians of turns, each way in a process of its own,
auto too. The best is of the other ways. Ready says how many CPU seconds `optimize` took beyond imports: the first time,
each way with an empty cache of its own, and in a second process, from that cache.

python benchmarks/runtimes.py [--bfloat16] [NAME ...]
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import geometric_mean

import torch
from contestants import BFLOAT16, RUNTIMES, ways
from fresh import machine
from turns import FAMILIES, Made, Taken, timed

BATCHES = (1, 16)
Cells = dict[str, float]


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or FAMILIES
    optimizations = tuple(BFLOAT16 if "--bfloat16" in sys.argv else RUNTIMES)
    columns = (*optimizations, "best", "auto takes", "ready at first, CPU s", "from the cache, CPU s")
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
            print(line(name, batch, taken, found, rows[batch][-1]), flush=True)
    for batch in BATCHES:
        means = (geometric_mean(row[way] for row in rows[batch]) for way in rows[batch][0])
        print(f"| geometric mean | {batch} | | {' | '.join(f'{mean:.2f}' for mean in means)} | | | |")
    print(f"\nThe runtime that {optimizations[-1]} takes makes {min(shares):.2f} of the best, or more.")


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


def line(name: str, batch: int, taken: Mapping[str, Taken], later: Mapping[str, float], row: Cells) -> str:
    """A row of the table."""
    cells = [f"{ratio:.2f}" for ratio in row.values()]
    cells.append(taken[list(later)[-1]].runtime)
    cells.append(", ".join(f"{way} {taken[way].making:.1f}" for way in later))
    cells.append(", ".join(f"{way} {seconds:.1f}" for way, seconds in later.items()))
    return f"| {name} | {batch} | {taken['timm'].forward * 1e3:.0f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
