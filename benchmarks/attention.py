"""What capturing attention costs: a forward of vit_small without capture, with one block and with all, interleaved.

Nothing stays installed, so a model that was captured takes the time of one that never was. Medians, one thread.

python benchmarks/attention.py
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from time import perf_counter

import torch
from fresh import machine
from torch import Tensor, nn

import featx
from featx import capture_attention

NAME, SIZE, BATCH, REPEATS = "vit_small_patch16_224", 224, 4, 21
Watching = Callable[[], AbstractContextManager[object]]


def main() -> None:
    torch.set_num_threads(1)
    model, x = featx.create_model(NAME).eval(), torch.randn(BATCH, 3, SIZE, SIZE)
    ways: dict[str, tuple[nn.Module, Watching]] = {
        "never captured": (copy.deepcopy(model), nullcontext),
        "after a capture": (model, nullcontext),
        "one block captured": (model, lambda: capture_attention(model, [-1])),
        "all 12 blocks captured": (model, lambda: capture_attention(model)),
    }
    seconds = timed(ways, x)
    print(f"{machine()}\n{NAME}, {BATCH} images of {SIZE}x{SIZE}, no_grad, median of {REPEATS} forwards each\n")
    print("| forward | ms | against never captured |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken * 1e3:.1f} | {(taken / seconds['never captured'] - 1) * 100:+.1f} % |")


@torch.no_grad()
def timed(ways: dict[str, tuple[nn.Module, Watching]], x: Tensor) -> dict[str, float]:
    """Median seconds of a forward in each way, the ways taking turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(REPEATS + 1):
        for name, (model, watching) in ways.items():
            start = perf_counter()
            with watching():
                model(x)
            if turn:
                taken[name].append(perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
