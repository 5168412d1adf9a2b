"""`runtime="auto"`: the fastest of the runtimes that can run a model on this machine, by a short measurement."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from time import perf_counter, process_time

import torch
from torch import Tensor

from ..errors import ArgumentError, FeatxError, MissingPackageError
from ..json_checks import JsonError, Value
from .agreement import smooth_noise, takes
from .available import runtimes, version
from .builds import built, require_buildable
from .cache import Cache, OwnFolder
from .graph_files import Request, facts_in, keep_facts
from .optimized import OptimizedExtractor

SECONDS = 2.5  # of forwards in all
FEWEST_TURNS, MOST_TURNS = 2, 9  # of every runtime, after one that is not counted
FAR = 1.6  # times as slow as the fastest on single images: left out before batches are measured
BATCH = 16  # images where there is no example

Made = Mapping[str, OptimizedExtractor]


@dataclass(frozen=True)
class Choice:
    """What runtime="auto" chose, and why.

    Attributes:
        runtime: The fastest; `optimize(model, runtime=choice.runtime)` pins it.
        milliseconds: Of an image by runtime: of the processor on one thread, else by the clock. Empty where only one
            runtime could be used.
        refused: Why other runtimes could not be used.
        threads: Of PyTorch, when it was measured.
        batch: Images in a measured forward; fewer than are given where these would have taken too long.
        size: Height and width of the images in pixels.
    """

    runtime: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    threads: int = 1
    batch: int = 1
    size: tuple[int, int] = (0, 0)


def fastest(request: Request) -> OptimizedExtractor:
    """The extractor on the runtime that is the fastest here; see `optimize` for what is raised."""
    possible, refused = _possible(request)
    images = _images(request)
    facts = [(name, version(name)) for name in possible]
    key = request.run_key("choice", facts, torch.get_num_threads(), tuple(images.shape), request.memory_format)
    known = _choice_in(facts_in(request.cache, key), possible)
    if known is not None:
        return _with(known, built(known.runtime, request))
    made, failed = _all_built(possible, request)
    choice = choose(made, images, {**refused, **failed})
    keep_facts(request.cache, key, asdict(choice))
    return _with(choice, made[choice.runtime])


def _with(choice: Choice, made: OptimizedExtractor) -> OptimizedExtractor:
    made.choice = choice
    return made


def _possible(request: Request) -> tuple[list[str], dict[str, str]]:
    """The runtimes that may be built here, and why the others may not."""
    possible, refused = [], {}
    for name in runtimes():
        try:
            require_buildable(name, request)
            possible.append(name)
        except (ArgumentError, MissingPackageError) as error:
            refused[name] = str(error)
    if not possible:
        raise ArgumentError(f"no runtime can be used: {'; '.join(refused.values())}")
    return possible, refused


def _images(request: Request) -> Tensor:
    """Images as will be given."""
    if request.example is not None:
        return request.example
    like = request.like
    return smooth_noise(like.expand(BATCH, -1, -1, -1))


def _all_built(possible: list[str], request: Request) -> tuple[dict[str, OptimizedExtractor], dict[str, str]]:
    """The extractors by runtime, and why others are none; the first error if there is none."""
    if request.cache is None:  # for this time alone, so that a graph is written once
        folder = OwnFolder()
        request = replace(request, cache=Cache(folder.path))
    made: dict[str, OptimizedExtractor] = {}
    failed: dict[str, FeatxError] = {}
    for name in possible:
        try:
            made[name] = built(name, request)
        except FeatxError as error:
            failed[name] = error
    if not made:
        raise next(iter(failed.values()))
    return made, {name: str(error) for name, error in failed.items()}


def choose(made: Made, images: Tensor, refused: Mapping[str, str]) -> Choice:
    """The fastest of extractors, which are by runtime, on images as will be given.

    refused: why there are no others, which the choice says.
    """
    threads, size = torch.get_num_threads(), (images.shape[2], images.shape[3])
    if len(made) == 1:
        return Choice(next(iter(made)), {}, refused, threads, len(images), size)
    batch, seconds = _seconds(made, images, process_time if threads == 1 else perf_counter)
    milliseconds = {name: 1e3 * taken for name, taken in seconds.items()}
    return Choice(min(seconds, key=seconds.__getitem__), milliseconds, refused, threads, batch, size)


@torch.inference_mode()
def _seconds(made: Made, images: Tensor, now: Callable[[], float]) -> tuple[int, dict[str, float]]:
    """How many images a forward had, and the median seconds of one by runtime."""

    def taken(name: str, given: Tensor) -> float:
        start = now()
        made[name](given)
        return (now() - start) / len(given)

    begin = process_time()
    one = images[:1] if all(takes(extractor, (1, *images.shape[1:])) for extractor in made.values()) else images
    for name in made:
        taken(name, one)
    seconds = {name: taken(name, one) for name in made}
    near = [name for name in made if seconds[name] <= FAR * min(seconds.values())]
    left = SECONDS - (process_time() - begin)
    each = sum(seconds[name] for name in near)
    batch = min(len(images), max(len(one), int(left / each / (1 + FEWEST_TURNS))))
    turns = min(MOST_TURNS, max(FEWEST_TURNS, int(left / each / batch) - 1))
    rounds = [{name: taken(name, images[:batch]) for name in near} for _ in range(1 + turns)]
    return batch, {**seconds, **{name: median(one[name] for one in rounds[1:]) for name in near}}


def _choice_in(facts: Value | None, possible: list[str]) -> Choice | None:
    """A choice that the cache has; None if it has none of these runtimes."""
    if facts is None:
        return None
    try:
        times, refused = facts["milliseconds"], facts["refused"]
        height, width = facts["size"].numbers(1, count=2)
        return Choice(
            facts["runtime"].text(possible),
            {name: times[name].real() for name in times.object()},
            {name: refused[name].text() for name in refused.object()},
            facts["threads"].number(1),
            facts["batch"].number(1),
            (height, width),
        )
    except JsonError:  # of another version of featx
        return None
