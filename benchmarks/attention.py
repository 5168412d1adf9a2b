"""Overhead of capturing attention: forward latency of vit_small without capture, with one block and with all blocks.

Capturing leaves no hooks, so the latency after a capture equals that before. Interleaved, medians, one thread.

python benchmarks/attention.py
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from time import perf_counter

import torch
from subprocess_runs import machine
from torch import Tensor, nn

import featx
from featx import capture_attention

NAME, SIZE, BATCH, REPEATS = "vit_small_patch16_224", 224, 4, 21
CaptureContext = Callable[[], AbstractContextManager[object]]


def main() -> None:
    torch.set_num_threads(1)
    model, x = featx.create_model(NAME).eval(), torch.randn(BATCH, 3, SIZE, SIZE)
    cases: dict[str, tuple[nn.Module, CaptureContext]] = {
        "never captured": (copy.deepcopy(model), nullcontext),
        "after a capture": (model, nullcontext),
        "one block captured": (model, lambda: capture_attention(model, [-1])),
        "all 12 blocks captured": (model, lambda: capture_attention(model)),
    }
    seconds = median_seconds(cases, x)
    print(f"{machine()}\n{NAME}, {BATCH} images of {SIZE}x{SIZE}, no_grad, median of {REPEATS} forwards each\n")
    print("| forward | ms | overhead |\n|---|---|---|")
    for name, duration in seconds.items():
        print(f"| {name} | {duration * 1e3:.1f} | {(duration / seconds['never captured'] - 1) * 100:+.1f} % |")


@torch.no_grad()
def median_seconds(cases: dict[str, tuple[nn.Module, CaptureContext]], x: Tensor) -> dict[str, float]:
    """Return the median seconds of a forward in each case, interleaved; the first round is not counted."""
    durations: dict[str, list[float]] = {name: [] for name in cases}
    for round_number in range(REPEATS + 1):
        for name, (model, capture) in cases.items():
            start = perf_counter()
            with capture():
                model(x)
            if round_number:
                durations[name].append(perf_counter() - start)
    return {name: median(values) for name, values in durations.items()}


if __name__ == "__main__":
    main()
