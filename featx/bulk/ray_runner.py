"""Extraction on a Ray cluster, into a folder on a file system that all nodes share.

Ray Data schedules the shards, starts as many actors as fit, and retries a shard on another actor if an actor or its
node dies. All state is in the output folder, so that a run resumes after a failure of the driver.
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
from .pipeline import Job, OnProgress, ShardReport, Worker
from .sources import Files, Source

MOST_CPUS = 4  # of an actor by default, which is also the default limit of concurrent batches
GPU_RUNTIMES = ("plain", "eager")  # "auto" may choose another one on the driver's machine, which may have no GPU
RETRIES = 10  # of a shard whose actor died, and of an actor; Ray's default has no limit, and 2.64 accepts none
OBJECTS = 512 * 2**20  # bytes of the object store beside the model, in a cluster that we start; it holds shard numbers

Outcomes = Generator[ShardReport | FeatxError, None, None]


@dataclass(frozen=True, slots=True)
class OnRay:
    """A runner for `featx.extract` on a Ray cluster. Every node needs featx, and access to the folder and the images.

    Args:
        address: of the cluster, or "auto" for the cluster of this machine. None uses the existing connection of this
            process, or else starts a cluster on this machine and stops it afterwards.
        device: of the actors' models: "cpu"; "cuda", which gives each actor its own GPU; or "auto", which is "cuda" if
            a node of the cluster has a GPU when the run starts. The machine that calls `featx.extract` needs none.
        cpus: per actor, which also decodes as many images concurrently, whatever `workers` of the resources is; None is
            a node's share per actor, at most four without a GPU.
        actors: maximum number of actors; None is as many as fit, also when the cluster grows.

    Raises:
        MissingPackageError: when called, Ray is not installed.
        ArgumentError: an argument is invalid; when called, there is no such cluster, or no node that can run an actor.
        OutputError: when called, Ray does not start, a node has no access to the folder, or actors die repeatedly.
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
        for argument in ("cpus", "actors"):
            value = getattr(self, argument)
            if value is not None and value < 1:
                raise ArgumentError(f"{argument}={value}: expected a positive number")

    def __call__(
        self, job: Job, numbers: Sequence[int], on_progress: OnProgress, stopped: Callable[[], bool]
    ) -> Iterator[ShardReport]:
        """Extract these shards in any order. Unfinished shards of other actors are lost when the run is stopped."""
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
                on_progress(outcome.written, len(outcome.failed))
                yield outcome
                if stopped():
                    break

    def _outcomes(self, ray: Any, job: Job, numbers: Sequence[int]) -> Outcomes:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        device = self._device(nodes)
        if device == "cuda" and job.recipe.runtime not in GPU_RUNTIMES:
            raise ArgumentError(
                f"runtime={job.recipe.runtime!r} runs on CPUs, and the actors would use GPUs: name a new folder and "
                "runtime='eager', or pass OnRay(device='cpu')"
            )
        cpus, fitting = self._place(nodes, device)
        most = min(len(numbers), self.actors or len(numbers))
        job_ref = ray.put(replace(job, folder=Path(os.path.abspath(job.folder)), model=None))
        shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        outcomes = shards.map_batches(
            ShardActor,
            fn_constructor_args=([job_ref], device, cpus, os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, fitting)),
            num_cpus=cpus,
            num_gpus=1 if device == "cuda" else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        try:
            for row in outcomes.iter_rows():
                yield pickle.loads(row["outcome"])
        except ray.exceptions.RayActorError as error:
            raise OutputError(
                f"actors died repeatedly, so that shards are missing; finished files are kept, run again to resume: "
                f"{str(error).strip()}"
            ) from error

    def _device(self, nodes: Sequence[Mapping[str, float]]) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if any(node.get("GPU", 0) >= 1 for node in nodes) else "cpu"

    def _place(self, nodes: Sequence[Mapping[str, float]], device: str) -> tuple[int, int]:
        """CPUs per actor, and the number of actors that fit now. `nodes` are the resources of each node."""
        kind, most = ("GPU", 2**16) if device == "cuda" else ("CPU", MOST_CPUS)
        suitable = [node for node in nodes if node.get(kind, 0) >= 1 and node.get("CPU", 0) >= (self.cpus or 1)]
        if not suitable:
            wanted = f"{self.cpus or 1} CPUs" + (" and a GPU" if kind == "GPU" else "")
            raise ArgumentError(f"no node of the Ray cluster has {wanted}, which an actor needs: start such a node")
        shared = [int(node["CPU"] // (node["GPU"] if kind == "GPU" else 1)) for node in suitable]
        cpus = self.cpus or max(1, min(most, *shared))
        return cpus, sum(int(min(node["CPU"] // cpus, node[kind])) for node in suitable)


class ShardActor:
    """A Ray actor that extracts one shard after another on its CPUs or its GPU.

    Args:
        job_refs: the reference to the job, in a list, so that Ray does not fetch it automatically.
        device: of the model.
        cpus: threads of the actor.
        folder: the driver's working directory, which relative paths start from.
    """

    def __init__(self, job_refs: list[Any], device: str, cpus: int, folder: str) -> None:
        self._job_refs, self._device, self._cpus, self._folder = job_refs, device, cpus, folder
        self._worker: Worker | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """{"outcome": pickled reports or FeatxErrors} for a batch {"shard": numbers}."""
        return {"outcome": [pickle.dumps(self._outcome(int(number))) for number in batch["shard"]]}

    def _outcome(self, number: int) -> ShardReport | FeatxError:
        """The report or the error, which is returned because Ray would wrap a raised exception."""
        try:
            if self._worker is None:
                self._worker = self._create_worker()
            return self._worker.extract_shard(number)
        except FeatxError as error:
            return error

    def _create_worker(self) -> Worker:
        import ray
        import torch

        from ..runtime.allocator import keep_freed_memory

        job: Job = ray.get(self._job_refs[0])
        if os.path.isdir(self._folder):
            os.chdir(self._folder)
        _require_shared_paths(job)
        keep_freed_memory()
        torch.set_num_threads(self._cpus)
        resources = replace(job.resources, device=self._device, workers=self._cpus, streams=None)
        return Worker(replace(job, resources=resources.settled()))


def _require_shared_paths(job: Job) -> None:
    """Raise OutputError if paths do not exist on this node, because all of their images would be recorded as failed."""
    paths = [os.path.join(job.folder, META), *map(_path_of, job.items.sources)]
    missing = [path for path in paths if path and not is_address(path) and not os.path.exists(path)]
    if missing:
        raise OutputError(
            f"the node {platform.node()} does not see {', '.join(missing)}: expected places that all nodes of the "
            "cluster share, under the same path"
        )


def _path_of(source: Source) -> str:
    """A path that all images of a source need, or "" if none is known without reading the source."""
    if isinstance(source, Files):
        return source.root
    if isinstance(source, Tar | Zip | Table):
        return source.path
    return os.path.dirname(source.where(0)) if isinstance(source, Listed) and source.names else ""


def require_ray() -> Any:
    """The module ray with its submodules that are used here; MissingPackageError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise MissingPackageError("extracting on a Ray cluster needs Ray: pip install 'featx[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, weights: int = 0) -> Iterator[None]:
    """A context in which this process is connected to a cluster; an existing connection is used and kept.

    Args:
        ray: the module.
        address: of the cluster; None starts one.
        weights: bytes of the model, which the object store of a new cluster must hold.
    """
    if ray.is_initialized():
        yield
        return
    options = {"include_dashboard": False, "object_store_memory": OBJECTS + 2 * weights} if address is None else {}
    try:
        with _signals_kept():
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises Exception itself if one of its processes does not start in time
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
    """A context after which the signal handlers are restored, because Ray replaces that of SIGTERM."""
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
    """A context in which Ray Data shows no progress bars and logs only errors, since featx reports the progress.

    Actors that die during their start are also retried, like those that die later.
    """
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.max_consecutive_actor_init_deaths, logger.level
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = RETRIES  # a node may disappear while an actor starts on it
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        context.max_consecutive_actor_init_deaths = before[1]
        logger.setLevel(before[2])
