"""What capturing attention costs: a forward of vit_small without capture, with one block and with all, interleaved.

"before any capture" and "after a capture" must agree, because nothing stays installed. Medians, one thread.

python benchmarks/attention.py
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from time import perf_counter

import torch
from fresh import machine

import featx
from featx import capture_attention

NAME, SIZE, BATCH, REPEATS = "vit_small_patch16_224", 224, 4, 15
Watching = Callable[[], AbstractContextManager[object]]


def main() -> None:
    torch.set_num_threads(1)
    model, x = featx.create_model(NAME).eval(), torch.randn(BATCH, 3, SIZE, SIZE)
    before = {"before any capture": timed(model, x, {"": nullcontext}, REPEATS)[""]}
    ways: dict[str, Watching] = {
        "after a capture": nullcontext,
        "one block captured": lambda: capture_attention(model, [-1]),
        "all 12 blocks captured": lambda: capture_attention(model),
    }
    seconds = before | timed(model, x, ways, REPEATS)
    print(f"{machine()}\n{NAME}, {BATCH} images of {SIZE}x{SIZE}, no_grad, median of {REPEATS} forwards each\n")
    print("| forward | ms | against none captured |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken * 1e3:.1f} | {(taken / seconds['after a capture'] - 1) * 100:+.1f} % |")


@torch.no_grad()
def timed(model: torch.nn.Module, x: torch.Tensor, ways: dict[str, Watching], repeats: int) -> dict[str, float]:
    """Median seconds of a forward in each way, the ways taking turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, watching in ways.items():
            start = perf_counter()
            with watching():
                model(x)
            if turn:
                taken[name].append(perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
