"""Shards extracted by the machines of a Ray cluster, into a folder that all of them see.

Ray Data places the work, starts as many actors as fit, and gives a shard to another one when an actor or its machine
dies. What is done and what failed stays with the files, so that a run whose driver was lost goes on like any other.
"""

import logging
import os
import pickle
import platform
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, FeatxError, MissingPackageError, OutputError
from .archives import Tar, Zip
from .file_lists import Listed
from .filesystems import is_address
from .meta import META
from .parquet_source import Table
from .pipeline import Job, Seen, ShardReport, Worker
from .sources import Files, Source

MOST_CPUS = 4  # of an actor by default; a model runs on no more batches at once
ON_GPUS = (
    "plain",
    "eager",
)  # runtimes; another one is what "auto" takes on the driver's machine, which may have no GPU
RETRIES = 10  # of a shard whose actor died, and of an actor; Ray would go on for ever, and from 2.64 on takes no number
OBJECTS = 512 * 2**20  # bytes that a cluster of our own keeps beside the model; only numbers of shards are passed

Outcomes = Generator[ShardReport | FeatxError, None, None]


@dataclass(frozen=True, slots=True)
class OnRay:
    """A runner for `featx.extract` that has a Ray cluster do it. Every node needs featx, and sees folder and images.

    address: of the cluster, "auto" for the one this machine belongs to; None starts one on this machine, and ends it
        afterwards, unless this process is connected already.
    device: where the actors' models run: "cpu", "cuda", so that each has a GPU of its own, or "auto": "cuda" if a node
        of the cluster has a GPU when the run begins. The machine that calls `featx.extract` needs none.
    cpus: of an actor; None is as many as a node has for it, on a CPU up to four.
    actors: the most there are; None is as many as the cluster holds, which may grow.

    Called by `featx.extract`. Raises MissingPackageError without Ray, ArgumentError if there is no such cluster or no
    node that can hold an actor, OutputError if Ray does not start, a node does not see the folder, or actors die again
    and again.
    """

    address: str | None = None
    device: str = "auto"
    cpus: int | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ArgumentError(
                f"device={self.device!r}: choose 'cpu', 'cuda' for a GPU that Ray gives each actor, or 'auto'"
            )
        for what in ("cpus", "actors"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise ArgumentError(f"{what}={value}: expected a positive number")

    def __call__(
        self, job: Job, numbers: Sequence[int], seen: Seen, stopped: Callable[[], bool]
    ) -> Iterator[ShardReport]:
        """Extract these shards, in any order. What other actors have in work when it is stopped is lost."""
        if not numbers:
            return
        ray = require_ray()
        weights = sum(tensor.nbytes for tensor in job.extractor.state_dict().values())
        with (
            _connected(ray, self.address, weights),
            _quiet(ray),
            closing(self._outcomes(ray, job, numbers)) as outcomes,
        ):
            for outcome in outcomes:
                if isinstance(outcome, FeatxError):
                    raise outcome
                seen(outcome.written, len(outcome.failed))
                yield outcome
                if stopped():
                    break

    def _outcomes(self, ray: Any, job: Job, numbers: Sequence[int]) -> Outcomes:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        device = self._device(nodes)
        if device == "cuda" and job.recipe.runtime not in ON_GPUS:
            raise ArgumentError(
                f"runtime={job.recipe.runtime!r} runs on CPUs, and the actors would use GPUs: name a new folder and "
                "runtime='eager', or pass OnRay(device='cpu')"
            )
        cpus, fitting = self._place(nodes, device)
        most = min(len(numbers), self.actors or len(numbers))
        held = ray.put(replace(job, folder=Path(os.path.abspath(job.folder)), model=None))
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        made = shards.map_batches(
            Extracting,
            fn_constructor_args=([held], device, cpus, os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, fitting)),
            num_cpus=cpus,
            num_gpus=1 if device == "cuda" else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        try:
            for row in made.iter_rows():
                yield pickle.loads(row["outcome"])
        except ray.exceptions.RayActorError as error:
            raise OutputError(
                f"actors died again and again, so that shards are missing; what is written stays, run again to go on: "
                f"{str(error).strip()}"
            ) from error

    def _device(self, nodes: Sequence[Mapping[str, float]]) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if any(node.get("GPU", 0) >= 1 for node in nodes) else "cpu"

    def _place(self, nodes: Sequence[Mapping[str, float]], device: str) -> tuple[int, int]:
        """CPUs of an actor, and how many actors fit now. nodes: resources of each."""
        kind, most = ("GPU", 2**16) if device == "cuda" else ("CPU", MOST_CPUS)
        holding = [node for node in nodes if node.get(kind, 0) >= 1 and node.get("CPU", 0) >= (self.cpus or 1)]
        if not holding:
            wanted = f"{self.cpus or 1} CPUs" + (" and a GPU" if kind == "GPU" else "")
            raise ArgumentError(f"no node of the Ray cluster has {wanted}, which an actor needs: start such a node")
        shared = [int(node["CPU"] // (node["GPU"] if kind == "GPU" else 1)) for node in holding]
        cpus = self.cpus or max(1, min(most, *shared))
        return cpus, sum(int(min(node["CPU"] // cpus, node[kind])) for node in holding)


class Extracting:
    """An actor: extracts the shards it is given, one after another, on its CPUs or its GPU.

    held: the job, as a reference that Ray does not fetch by itself. folder: the driver's, which relative paths are of.
    """

    def __init__(self, held: list[Any], device: str, cpus: int, folder: str) -> None:
        self._held, self._device, self._cpus, self._folder = held, device, cpus, folder
        self._worker: Worker | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """{"shard": numbers} to {"outcome": reports, or a user's error, pickled}."""
        return {"outcome": [pickle.dumps(self._outcome(int(number))) for number in batch["shard"]]}

    def _outcome(self, number: int) -> ShardReport | FeatxError:
        """Ray would take an exception for one of its own, and wrap it."""
        try:
            if self._worker is None:
                self._worker = self._started()
            return self._worker.extract_shard(number)
        except FeatxError as error:
            return error

    def _started(self) -> Worker:
        import ray
        import torch

        from ..runtime.allocator import keep_freed_memory

        job: Job = ray.get(self._held[0])
        if os.path.isdir(self._folder):
            os.chdir(self._folder)
        _require_sight(job)
        keep_freed_memory()
        torch.set_num_threads(self._cpus)
        resources = replace(job.resources, device=self._device, workers=self._cpus, streams=None)
        return Worker(replace(job, resources=resources.settled()))


def _require_sight(job: Job) -> None:
    """OutputError if this node does not see what the driver does: images would fail that are there."""
    places = [os.path.join(job.folder, META), *map(_place_of, job.items.sources)]
    unseen = [place for place in places if place and not is_address(place) and not os.path.exists(place)]
    if unseen:
        raise OutputError(
            f"the node {platform.node()} does not see {', '.join(unseen)}: expected places that all nodes of the "
            "cluster share, under the same path"
        )


def _place_of(source: Source) -> str:
    """A path without which a source has no image, or nothing if that cannot be told without reading it."""
    if isinstance(source, Files):
        return source.root
    if isinstance(source, Tar | Zip | Table):
        return source.path
    return os.path.dirname(source.where(0)) if isinstance(source, Listed) and source.names else ""


def require_ray() -> Any:
    """The module ray, with what is used of it; MissingPackageError saying how to have it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise MissingPackageError("extracting on a Ray cluster needs Ray: pip install 'featx[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, weights: int = 0) -> Iterator[None]:
    """Within the block this process is connected to a cluster; to the one it was connected to before, if it was.

    weights: bytes of the model, which a cluster of our own has room for.
    """
    if ray.is_initialized():
        yield
        return
    own = {"include_dashboard": False, "object_store_memory": OBJECTS + 2 * weights} if address is None else {}
    try:
        with _signals_kept():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray raises that itself where one of its processes does not start in time
        if address is not None:
            raise ArgumentError(f"address={address!r}: there is no Ray cluster to connect to: {error}") from error
        raise OutputError(
            f"Ray cannot start a cluster on this machine: {error}. Is there memory and room in /tmp? Start one with "
            "`ray start --head` and pass address='auto', or extract without Ray"
        ) from error
    try:
        yield
    finally:
        with _signals_kept():
            ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, which whoever called this may have uses for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Progress is told by whoever iterates; Ray Data keeps its bars and remarks to itself, but for errors.

    It also forgives actors that die as they start, as it does those that die later.
    """
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.max_consecutive_actor_init_deaths, logger.level
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = RETRIES  # a node may go while an actor starts on it
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        context.max_consecutive_actor_init_deaths = before[1]
        logger.setLevel(before[2])
