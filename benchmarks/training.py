"""Time and memory of a training step of extractors with all levels, timm's and featx's.

A step is a forward in training mode, a backward of the sum of the maps' means, and a step of SGD, on 8 images of the
model's own size. Time is CPU time of one thread, interleaved, medians; each candidate runs in its own process. Memory
is the peak of tensors in a step beyond the model and its images; "process" is the increase of the process's memory
after the model was built, which includes what the C library keeps. Cells are timm's time over featx's, and timm's
memory over featx's: above 1 is faster, or smaller. `recompute` (all levels) and `freeze` (up to level 1) are compared
with timm's plain step; channels_last and bfloat16 (autocast, if the processor supports it) with the same setting in
timm. Compiled steps take minutes to build and are measured only with `--compile`.

All processes keep freed memory, timm's too. Otherwise the result is random: the number of pages that a step requests
from the kernel differs between processes, and the same step of efficientnet_b0 took 1.10 to 1.38 s.

python benchmarks/training.py [--plain] [--compile] [NAME ...]
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
from extractors import of_featx, of_timm
from interleaved_timing import FAMILIES, Candidate, Timing, timed
from subprocess_runs import machine
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import featx
from featx import training
from featx.runtime.allocator import keep_freed_memory

BATCH = 8
RATE = 1e-3  # learning rate of SGD; small, so that random weights stay finite
LIBRARIES: dict[str, Callable[..., Candidate]] = {"timm": of_timm, "featx": of_featx}
# by group: interleaved candidates and their columns; each is compared with the group's "timm"
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
        timings = {group: timed(steps(name, group, candidates))[0] for group, candidates in groups.items()}
        for column, pair in ratios_by_column(groups, timings):
            ratios[column].append(pair)
        plain = timings["plain"]["timm"]
        cells = " | ".join(cell(ratios[column][-1]) for column in columns)
        resident = f"{plain.resident / timings['plain']['featx'].resident:.2f}"
        print(f"| {name} | {plain.forward * 1e3:.0f} | {plain.memory:.0f} | {cells} | {resident} |", flush=True)
    means = [cell(tuple(geometric_mean(column) for column in zip(*ratios[name], strict=True))) for name in columns]
    print(f"| geometric mean | | | {' | '.join(means)} | |")


def chosen_groups() -> dict[str, dict[str, str]]:
    """Return the groups to measure, according to the arguments and the processor."""
    if "--plain" in sys.argv:
        return {"plain": {"featx": "plain"}}
    mkldnn: Any = torch.ops.mkldnn
    excluded = set() if "--compile" in sys.argv else {"compile"}
    excluded |= set() if mkldnn._is_mkldnn_bf16_supported() else {"bf16"}
    return {group: candidates for group, candidates in GROUPS.items() if group not in excluded}


def ratios_by_column(
    groups: Mapping[str, Mapping[str, str]], timings: Mapping[str, Mapping[str, Timing]]
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield for each column timm's time over featx's, and timm's memory over featx's."""
    for group, candidates in groups.items():
        timm = timings[group]["timm"]
        for candidate, column in candidates.items():
            timing = timings[group][candidate]
            yield column, (timm.forward / timing.forward, timm.memory / timing.memory)


def cell(ratios: tuple[float, ...]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


def steps(name: str, group: str, candidates: Mapping[str, str]) -> dict[str, Callable[[], Candidate]]:
    return {candidate: partial(build, candidate, group, name) for candidate in ("timm", *candidates)}


def build(candidate: str, group: str, name: str, batch: int = BATCH, size: int | None = None) -> Candidate:
    """Build a training step: the candidate names the library and a change, the group a setting."""
    keep_freed_memory()
    library, _, change = candidate.partition(" ")
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
    return Candidate(model, x, run=step, memory=partial(peak_of_tensors, step))


def train_step(bf16: bool, model: nn.Module, x: Tensor) -> None:
    """Run forward, backward and update; afterwards the gradients are None."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss = torch.stack([map_.float().mean() for map_ in model(x)]).sum()
    loss.backward()
    torch.optim.SGD(trainable, RATE).step()
    model.zero_grad(set_to_none=True)


def peak_of_tensors(step: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    """Return the peak memory of the tensors that a step allocates, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, x)
    kineto: Any = profiler.profiler
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak / 2**20


if __name__ == "__main__":
    main()
