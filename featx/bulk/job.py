"""An extraction as every process that takes part in it has it, and the one thing it does: extract a shard."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..wrappers import FeatureExtractWrapper
from .decode import decoder_for
from .engine import Seen, shards
from .meta import Plan
from .model import Model
from .recipe import Recipe, Resources
from .shard import Failure, Shard, write_shard
from .sources import Items


@dataclass(frozen=True, slots=True)
class Job:
    """What to extract, how, and into which folder. The folder has the plan in its meta.json.

    resources: settled, with a batch size. fills: whether smaller batches are filled up; see Model. model: ready to run
    here; without it, as other processes have the job, it can be pickled, and they make their own.
    """

    folder: Path
    plan: Plan
    items: Items
    extractor: FeatureExtractWrapper
    recipe: Recipe
    resources: Resources
    fills: bool
    model: Model | None = None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A shard that was written: its number, images with maps, images that failed, bytes of the file."""

    shard: int
    written: int
    failed: tuple[Failure, ...]
    nbytes: int


class Worker:
    """Extracts shards of a job, with a model of its own. Writing a shard again gives the same file."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._decoder = decoder_for(job.extractor, job.items, job.recipe, job.resources.max_pixels)
        batch_size = job.resources.batch_size
        assert batch_size is not None
        self._model = job.model or Model(job.extractor, job.recipe, job.resources)
        self._model.batch_size, self._model.fills = batch_size, job.fills

    def extract_shard(self, number: int) -> ShardReport:
        """Write one shard. OutputError if it cannot be written; bad images are in its header and in the report."""
        (report,) = self.extract_shards([number])
        return report

    def extract_shards(
        self,
        numbers: Iterable[int],
        *,
        seen: Seen = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[ShardReport]:
        """Write shards one after another: while one is written, the next is computed, and images after it are decoded.

        seen: called after every batch. stopped: asked after every shard.
        """
        made = shards(self.job.plan, numbers, self._decoder, self._model, self.job.resources, seen)
        waiting: Future[ShardReport] | None = None
        with ThreadPoolExecutor(1, "write") as writer, closing(made):
            for shard in made:
                if waiting is not None:
                    yield waiting.result()
                waiting = writer.submit(self._write, shard)
                if stopped():
                    break
            if waiting is not None:
                yield waiting.result()

    def _write(self, shard: Shard) -> ShardReport:
        nbytes = write_shard(self.job.folder, shard)
        return ShardReport(shard.number, len(shard.ids), tuple(shard.failed), nbytes)
