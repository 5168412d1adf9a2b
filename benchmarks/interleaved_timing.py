"""Interleaved timing of forwards, or of other work, in CPU time; each candidate runs in its own process.

The C library's memory is shared within a process, and a forward takes up to half of its time for memory that the kernel
zeroes. How much memory that is depends on the candidates that ran before, hence separate processes. The candidates
alternate in short rounds, so that other load on the machine affects all of them equally.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing import get_context
from random import Random
from resource import RUSAGE_SELF, getrusage
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn

# models that timm has too
FAMILIES = (
    *("resnet50", "resnest26d", "repvgg_a2", "mobilenetv3_large_100", "efficientnet_b0", "tf_efficientnetv2_b0"),
    *("rexnet_100", "hrnet_w18", "convnext_tiny", "mobilevit_s", "mobilevitv2_100", "vit_small_patch16_224"),
)
GENERATIONS = 2  # of processes: the random memory layout of a process changes its forwards by up to a tenth
# Rounds are short and many, because load of other machines on the same processor changes forwards by up to a half, for
# seconds at a time.
ROUND_SECONDS = 0.1  # of forwards in a round, which has at least one
MIN_ROUNDS, MAX_ROUNDS = 2, 12  # per generation, after an uncounted one
GENERATION_SECONDS = 1.2  # target for the forwards of a generation, within the limits of the number of rounds


@torch.inference_mode()
def forward(model: nn.Module, x: Tensor) -> None:
    model(x)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be timed.

    Attributes:
        model: the model.
        x: its images.
        build_seconds: CPU seconds to prepare the model for use.
        run: the timed function, called with model and x.
        memory: measures MiB, called with model and x once after all rounds.
        runtime: name of the runtime.
    """

    model: nn.Module
    x: Tensor
    build_seconds: float = 0.0
    run: Callable[[nn.Module, Tensor], object] = forward
    memory: Callable[[nn.Module, Tensor], float] | None = None
    runtime: str = ""


Builders = Mapping[str, Callable[[], Candidate]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Measurements of a candidate.

    Attributes:
        forward: median CPU seconds of a forward.
        build_seconds: CPU seconds to prepare the model for use.
        parameters: number of parameters.
        runtime: name of the runtime.
        memory: MiB of tensors, as the candidate measures them.
        resident: increase of the process's peak memory since the model was built, in MiB.
    """

    forward: float
    build_seconds: float
    parameters: int
    runtime: str = ""
    memory: float = 0.0
    resident: float = 0.0


def timed(*cases: Builders, generations: int = GENERATIONS) -> list[dict[str, Timing]]:
    """Time all candidates of each case.

    Args:
        cases: builders by candidate. All cases have the same candidates; a candidate's process runs them in order.
            A builder is called in that process, so it must be picklable.
        generations: number of new processes per candidate.

    Returns:
        The timings of each case, by candidate.
    """
    runs = [_generation(cases) for _ in range(generations)]
    return [
        {candidate: _median_timing([run[case][candidate] for run in runs]) for candidate in builders}
        for case, builders in enumerate(cases)
    ]


def _median_timing(timings: list[Timing]) -> Timing:
    return replace(
        timings[0],
        forward=median(timing.forward for timing in timings),
        resident=median(timing.resident for timing in timings),
    )


def _generation(cases: Sequence[Builders]) -> list[dict[str, Timing]]:
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for name in cases[0]}
        return [_time_case(pools, builders) for builders in cases]


def _time_case(pools: Mapping[str, ProcessPoolExecutor], builders: Builders) -> dict[str, Timing]:
    futures = {name: pools[name].submit(_build, builder) for name, builder in builders.items()}
    facts = {name: future.result() for name, future in futures.items()}
    seconds: dict[str, list[float]] = {name: [] for name in builders}
    order, shuffle = [*builders], Random(0).shuffle
    longest = max(sum(pools[name].submit(_round).result()) for name in builders)
    for _ in range(min(max(round(GENERATION_SECONDS / longest), MIN_ROUNDS), MAX_ROUNDS)):
        shuffle(order)
        for name in order:
            seconds[name] += pools[name].submit(_round).result()
    memory = {name: pools[name].submit(_memory).result() for name in builders}
    return {name: Timing(median(seconds[name]), *facts[name], *memory[name]) for name in builders}


# The candidate of this process, and the process's peak memory in MiB when it was built.
_current: dict[str, Candidate] = {}
_peak_at_build: list[float] = []


def _build(builder: Callable[[], Candidate]) -> tuple[float, int, str]:
    """Build this process's candidate; return its build seconds, number of parameters and runtime."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # random weights cause denormal values, which slow some processors down tenfold
    _current.clear()
    _current["candidate"] = candidate = builder()
    _peak_at_build[:] = [_peak_memory()]
    parameters = sum(parameter.numel() for parameter in candidate.model.parameters())
    return candidate.build_seconds, parameters, candidate.runtime


def _peak_memory() -> float:
    """Return the peak resident memory of this process in MiB."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def _memory() -> tuple[float, float]:
    """Return MiB of tensors, and the increase of the peak resident memory since the build."""
    candidate, increase = _current["candidate"], _peak_memory() - _peak_at_build[0]
    return candidate.memory(candidate.model, candidate.x) if candidate.memory else 0.0, increase


def _round() -> list[float]:
    """Run forwards for ROUND_SECONDS; return the CPU seconds of each."""
    candidate, seconds = _current["candidate"], list[float]()
    while sum(seconds) < ROUND_SECONDS:
        start = process_time()
        candidate.run(candidate.model, candidate.x)
        seconds.append(process_time() - start)
    return seconds
