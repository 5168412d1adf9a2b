"""A training step of extractors with all levels, timm's and featx's: its time, and the memory that it takes.

A step is a forward in training mode, a backward of the sum of the maps' means, and a step of SGD, on 8 images of the
model's own size. CPU time of one thread, medians of turns, each way in a process of its own. Memory is the peak of
tensors in a step beyond the model and its images; "process" says by how much the process grew from the finished model
on, which includes what the C library keeps. Cells are timm's time over featx's, and timm's memory over featx's: above 1
is faster, or smaller. `recompute` (all levels) and `freeze` (up to level 1) stand beside timm's plain step;
channels_last and bfloat16 (autocast, where the processor computes in it) beside timm's own. Compiled steps, whose
making takes minutes, are measured with `--compile` only.

All processes keep the memory that they free, timm's too. Otherwise chance decides: how many pages a step asks the
kernel for differs from process to process, and made the same step of efficientnet_b0 1.10 to 1.38 s.

python benchmarks/training.py [--plain] [--compile] [NAME ...]
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from contestants import of_featx, of_timm
from fresh import machine
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from turns import FAMILIES, Made, Taken, timed

import featx
from featx import training
from featx.runtime.allocator import keep_freed_memory

BATCH = 8
RATE = 1e-3  # of SGD; no larger, so that random weights stay finite
LIBRARIES: dict[str, Callable[..., Made]] = {"timm": of_timm, "featx": of_featx}
# ways whose processes take turns, by the column that they fill; each stands beside "timm" of its group
GROUPS: dict[str, dict[str, str]] = {
    "plain": {"featx": "plain", "featx recompute": "recompute", "featx freeze": "freeze"},
    "channels_last": {"featx": "channels_last"},
    "bf16": {"featx": "bf16"},
    "compile": {"featx": "compile"},
}


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(FAMILIES)
    groups = chosen_groups()
    columns = [column for group in groups.values() for column in group.values()]
    print(f"{machine()}\n")
    print(f"| model | timm ms | timm MiB | {' | '.join(columns)} | process, plain |")
    print("|---" * (len(columns) + 4) + "|")
    ratios: dict[str, list[tuple[float, float]]] = {column: [] for column in columns}
    for name in names:
        taken = {group: timed(steps(name, group, ways))[0] for group, ways in groups.items()}
        for column, pair in compared(groups, taken):
            ratios[column].append(pair)
        plain = taken["plain"]["timm"]
        cells = " | ".join(cell(ratios[column][-1]) for column in columns)
        grown = f"{plain.resident / taken['plain']['featx'].resident:.2f}"
        print(f"| {name} | {plain.forward * 1e3:.0f} | {plain.memory:.0f} | {cells} | {grown} |", flush=True)
    means = [cell(tuple(geometric_mean(column) for column in zip(*ratios[name], strict=True))) for name in columns]
    print(f"| geometric mean | | | {' | '.join(means)} | |")


def chosen_groups() -> dict[str, dict[str, str]]:
    """The groups to measure: all that the arguments and the processor allow."""
    if "--plain" in sys.argv:
        return {"plain": {"featx": "plain"}}
    mkldnn: Any = torch.ops.mkldnn
    left_out = set() if "--compile" in sys.argv else {"compile"}
    left_out |= set() if mkldnn._is_mkldnn_bf16_supported() else {"bf16"}
    return {group: ways for group, ways in GROUPS.items() if group not in left_out}


def compared(
    groups: Mapping[str, Mapping[str, str]], taken: Mapping[str, Mapping[str, Taken]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Of each column, timm's time and memory over featx's."""
    for group, ways in groups.items():
        timm = taken[group]["timm"]
        for way, column in ways.items():
            one = taken[group][way]
            yield column, (timm.forward / one.forward, timm.memory / one.memory)


def cell(ratios: tuple[float, ...]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


def steps(name: str, group: str, ways: Mapping[str, str]) -> dict[str, Callable[[], Made]]:
    return {way: partial(made, way, group, name) for way in ("timm", *ways)}


def made(way: str, group: str, name: str, batch: int = BATCH, size: int | None = None) -> Made:
    """A model in training mode, prepared as the way and its group say, and a step of it."""
    keep_freed_memory()
    library, _, change = way.partition(" ")
    plain = LIBRARIES[library](name, batch, size)
    model, x = plain.model.train(), plain.x
    if change == "recompute":
        assert isinstance(model, featx.FeatureExtractWrapper)
        training.recompute(model, model.feature_info.names())
    elif change == "freeze":
        training.freeze(model, upto=1)
    if group == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if group == "compile":
        model.compile()
    step = partial(train_step, group == "bf16")
    return Made(model, x, run=step, memory=partial(peak_of_tensors, step))


def train_step(bf16: bool, model: nn.Module, x: Tensor) -> None:
    """Forward, backward and update; gradients are gone afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss = torch.stack([map_.float().mean() for map_ in model(x)]).sum()
    loss.backward()
    torch.optim.SGD(trained, RATE).step()
    model.zero_grad(set_to_none=True)


def peak_of_tensors(step: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    """MiB of tensors that a step allocates and holds at the same time, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, x)
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


if __name__ == "__main__":
    main()
