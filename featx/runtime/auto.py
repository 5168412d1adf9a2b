"""Selection of the fastest runtime for `runtime="auto"`, by a short measurement on this machine."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor

from ..errors import ArgumentError, FeatxError, MissingPackageError
from ..json_checks import JsonError, Value
from .agreement import accepts, smooth_noise
from .available import runtimes, version
from .builds import DEFAULT_BATCH, built, require_buildable
from .cache import Cache, OwnFolder
from .graph_files import Request
from .optimized import OptimizedExtractor

MEASURE_SECONDS = 2.5  # of all measured forwards together
MIN_ROUNDS, MAX_ROUNDS = 2, 9  # of measured forwards, after a warm-up round
SLOW_RATIO = 1.6  # a runtime this much slower than the fastest on one image is not measured on batches

Extractors = Mapping[str, OptimizedExtractor]  # by runtime


@dataclass(frozen=True)
class Choice:
    """The runtime that runtime="auto" selected, and its measurement.

    Attributes:
        runtime: The fastest runtime; `optimize(model, runtime=choice.runtime)` pins it.
        milliseconds: Time per image by runtime: CPU time if PyTorch uses one thread, else wall-clock time. Empty if
            only one runtime could be used.
        refused: The reasons why other runtimes could not be used, by runtime.
        threads: Number of PyTorch's threads during the measurement.
        batch: Images per measured forward; fewer than in the example if its forwards would have taken too long.
        size: Height and width of the images in pixels.
    """

    runtime: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    batch: int = 1
    size: tuple[int, int] = (0, 0)


def fastest(request: Request) -> OptimizedExtractor:
    """The extractor on the fastest runtime, from the cached choice if there is one; raises what `optimize` raises."""
    candidates, refused = _candidates(request)
    images = (
        smooth_noise(request.like.expand(DEFAULT_BATCH, -1, -1, -1)) if request.example is None else request.example
    )
    versions = [(name, version(name)) for name in candidates]
    key = request.run_key("choice", versions, torch.get_num_threads(), tuple(images.shape), request.memory_format)
    choice = _cached_choice(request.facts(key), candidates)
    if choice is not None:
        extractor = built(choice.runtime, request)
    else:
        extractors, failed = _build_all(candidates, request)
        choice = choose(extractors, images, {**refused, **failed})
        request.keep(key, asdict(choice))
        extractor = extractors[choice.runtime]
    extractor.choice = choice
    return extractor


def _candidates(request: Request) -> tuple[list[str], dict[str, str]]:
    """The runtimes that can be built on this machine, and for each other one the reason why not."""
    candidates, refused = [], {}
    for name in runtimes():
        try:
            require_buildable(name, request)
            candidates.append(name)
        except (ArgumentError, MissingPackageError) as error:
            refused[name] = str(error)
    if not candidates:
        raise ArgumentError(f"no runtime can be used: {'; '.join(refused.values())}")
    return candidates, refused


def _build_all(candidates: list[str], request: Request) -> tuple[dict[str, OptimizedExtractor], dict[str, str]]:
    """Extractors by runtime, and error messages of the runtimes that failed; raises the first error if all failed."""
    if request.cache is None:  # a temporary cache, so that the runtimes share one graph
        folder = OwnFolder()
        request = replace(request, cache=Cache(folder.path))
    extractors: dict[str, OptimizedExtractor] = {}
    failed: dict[str, FeatxError] = {}
    for name in candidates:
        try:
            extractors[name] = built(name, request)
        except FeatxError as error:
            failed[name] = error
    if not extractors:
        raise next(iter(failed.values()))
    return extractors, {name: str(error) for name, error in failed.items()}


def choose(extractors: Extractors, images: Tensor, refused: Mapping[str, str]) -> Choice:
    """The fastest of the extractors on these images (N, C, H, W).

    refused: the reasons why other runtimes could not be used, for `Choice.refused`.
    """
    threads, size = torch.get_num_threads(), (images.shape[2], images.shape[3])
    if len(extractors) == 1:
        return Choice(next(iter(extractors)), {}, refused, threads, len(images), size)
    batch, seconds = _measure(extractors, images, process_time if threads == 1 else perf_counter)
    milliseconds = {name: 1e3 * per_image for name, per_image in seconds.items()}
    return Choice(min(seconds, key=seconds.__getitem__), milliseconds, refused, threads, batch, size)


@torch.inference_mode()
def _measure(extractors: Extractors, images: Tensor, clock: Callable[[], float]) -> tuple[int, dict[str, float]]:
    """The batch size that was measured, and the median seconds per image by runtime."""

    def seconds_per_image(name: str, x: Tensor) -> float:
        start = clock()
        extractors[name](x)
        return (clock() - start) / len(x)

    start = process_time()
    accept_one = all(accepts(extractor, (1, *images.shape[1:])) for extractor in extractors.values())
    first = images[:1] if accept_one else images
    for name in extractors:  # warm-up
        seconds_per_image(name, first)
    seconds = {name: seconds_per_image(name, first) for name in extractors}
    fast = [name for name in extractors if seconds[name] <= SLOW_RATIO * min(seconds.values())]
    remaining = MEASURE_SECONDS - (process_time() - start)
    per_round = sum(seconds[name] for name in fast)  # for one image
    batch = min(len(images), max(len(first), int(remaining / per_round / (1 + MIN_ROUNDS))))
    rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, int(remaining / per_round / batch) - 1))
    measured = [{name: seconds_per_image(name, images[:batch]) for name in fast} for _ in range(1 + rounds)][1:]
    return batch, {**seconds, **{name: median(times[name] for times in measured) for name in fast}}


def _cached_choice(facts: Value | None, candidates: list[str]) -> Choice | None:
    """The choice that a cache entry holds; None if it has none, or one of another runtime than the candidates."""
    if facts is None:
        return None
    try:
        times, refused = facts["milliseconds"], facts["refused"]
        height, width = facts["size"].numbers(1, count=2)
        return Choice(
            facts["runtime"].text(candidates),
            {name: times[name].real() for name in times.object()},
            {name: refused[name].text() for name in refused.object()},
            facts["threads"].number(1),
            facts["batch"].number(1),
            (height, width),
        )
    except JsonError:  # written by another version of featx
        return None
