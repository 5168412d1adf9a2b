"""Forwards, or what else models do, in processor time, each way in a process of its own, the ways taking turns.

A process of its own, because the C library's memory would be shared otherwise, and a forward takes up to half its time
for memory that the kernel has to fill with zeros: which it needs depends on what the other ways left behind. Turns, so
that what else runs on the machine harms all ways alike.
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

# of timm's models and of featx's
FAMILIES = (
    *("resnet50", "resnest26d", "repvgg_a2", "mobilenetv3_large_100", "efficientnet_b0", "tf_efficientnetv2_b0"),
    *("rexnet_100", "hrnet_w18", "convnext_tiny", "mobilevit_s", "mobilevitv2_100", "vit_small_patch16_224"),
)
GENERATIONS = 2  # of processes, because how one's memory is laid out, by chance, changes its forwards by up to a tenth
# Turns are short and many, because what other machines on the same processor do changes forwards by up to a half, for
# seconds at a time.
SECONDS = 0.1  # of forwards in a turn, which are one at least
FEWEST_TURNS, MOST_TURNS = 2, 12  # of each generation, after one that is not counted
WANTED_SECONDS = 1.2  # of forwards in the turns of a generation, in so far as their number allows


@torch.inference_mode()
def forward(model: nn.Module, x: Tensor) -> None:
    model(x)


@dataclass(frozen=True, slots=True)
class Made:
    """What a way runs: the model, the images it is given, and the CPU seconds it took to make it for use.

    run: what is timed. memory: MiB that this is measured to take, called once after all turns. runtime: its name.
    """

    model: nn.Module
    x: Tensor
    seconds: float = 0.0
    run: Callable[[nn.Module, Tensor], object] = forward
    memory: Callable[[nn.Module, Tensor], float] | None = None
    runtime: str = ""


Ways = Mapping[str, Callable[[], Made]]


@dataclass(frozen=True, slots=True)
class Taken:
    """Median CPU seconds of a forward, CPU seconds to make the model for use, its number of parameters, its runtime.

    memory: MiB of tensors, as the way measures them. resident: by how many MiB the process grew since it was made.
    """

    forward: float
    making: float
    parameters: int
    runtime: str = ""
    memory: float = 0.0
    resident: float = 0.0


def timed(*cases: Ways, generations: int = GENERATIONS) -> list[dict[str, Taken]]:
    """What every way takes in each of the cases; these have the same ways, whose processes take them one by one.

    What makes a way is called in its process, and must be found there by name.
    """
    runs = [_generation(cases) for _ in range(generations)]
    return [{way: _middle([run[case][way] for run in runs]) for way in ways} for case, ways in enumerate(cases)]


def _middle(taken: list[Taken]) -> Taken:
    return replace(
        taken[0],
        forward=median(one.forward for one in taken),
        resident=median(one.resident for one in taken),
    )


def _generation(cases: Sequence[Ways]) -> list[dict[str, Taken]]:
    with ExitStack() as stack:
        pools = {way: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for way in cases[0]}
        return [_turns(pools, ways) for ways in cases]


def _turns(pools: Mapping[str, ProcessPoolExecutor], ways: Ways) -> dict[str, Taken]:
    making = {way: pools[way].submit(_make, make) for way, make in ways.items()}
    made = {way: future.result() for way, future in making.items()}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    order, shuffle = [*ways], Random(0).shuffle
    longest = max(sum(pools[way].submit(_run).result()) for way in ways)
    for _ in range(min(max(round(WANTED_SECONDS / longest), FEWEST_TURNS), MOST_TURNS)):
        shuffle(order)
        for way in order:
            taken[way] += pools[way].submit(_run).result()
    memory = {way: pools[way].submit(_memory).result() for way in ways}
    return {way: Taken(median(taken[way]), *made[way], *memory[way]) for way in ways}


_here: dict[str, Made] = {}
_grown: list[float] = []  # peak memory of the process, when its model was made


def _make(make: Callable[[], Made]) -> tuple[float, int, str]:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # random weights make values so small that some processors take ten times as long
    _here.clear()
    _here["made"] = made = make()
    _grown[:] = [_peak()]
    return made.seconds, sum(parameter.numel() for parameter in made.model.parameters()), made.runtime


def _peak() -> float:
    """MiB of the most memory that the process has had."""
    return getrusage(RUSAGE_SELF).ru_maxrss / 1024


def _memory() -> tuple[float, float]:
    made, resident = _here["made"], _peak() - _grown[0]
    return made.memory(made.model, made.x) if made.memory else 0.0, resident


def _run() -> list[float]:
    made, taken = _here["made"], []
    while sum(taken) < SECONDS:
        start = process_time()
        made.run(made.model, made.x)
        taken.append(process_time() - start)
    return taken
