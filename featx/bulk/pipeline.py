"""The pipeline from images to shards: decoded ahead of the model, several batches at once, everything in order."""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from torch import Tensor

from ..wrappers import FeatureExtractWrapper
from .config import Recipe, Resources
from .decoder import Decoded, Decoder, decoder_for
from .inference import Model, threads_of_a_stream
from .meta import Plan
from .prefetch import DecoderProcesses, ahead
from .shard import Failure, Shard, write_shard
from .sources import Items

# Images that wait in a shard for others of their size, in batches, before the largest group goes ahead.
WAITING_BATCHES = 4
Row = tuple[Decoded, list[Tensor]]  # what is known of an item's picture, and what is stored of it by level
Seen = Callable[[int, int], object]  # called with how many more images have maps, and how many more have failed


@dataclass(slots=True)
class Batch:
    """Images of one size and one shard, what failed before them in the shard, and whether it is its last batch."""

    shard: int
    images: list[Decoded] = field(default_factory=list)
    failed: list[Decoded] = field(default_factory=list)
    last: bool = False
    maps: list[Tensor] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)


def shards(
    plan: Plan, numbers: Iterable[int], decoder: Decoder, model: Model, resources: Resources, seen: Seen
) -> Generator[Shard, None, None]:
    """Each of these shards, complete, in their order. `resources` are settled."""
    with ExitStack() as stack:
        numbers = list(numbers)
        items = chain.from_iterable(map(plan.items_of, numbers))
        decoded = stack.enter_context(_decoding(decoder, resources, items, model.batch_size))
        streams = stack.enter_context(_threads(resources))
        batches = chain.from_iterable(_batches(plan, number, decoded, model.batch_size) for number in numbers)
        ran = ahead(streams, lambda batch: _run(model, batch), batches, resources.streams or 1)
        stack.callback(ran.close)
        levels = model.extractor.feature_info.names()
        yield from _collected(ran, decoder, model, lambda number: Shard(number, plan.fingerprint, levels), seen)


@contextmanager
def _decoding(decoder: Decoder, resources: Resources, items: Iterable[int], batch: int) -> Iterator[Iterator[Decoded]]:
    workers = resources.workers or 1
    decode, stop = decoder, lambda: None
    if resources.decoders == "processes":
        decode = DecoderProcesses(decoder, workers, resources.decode_timeout)
        stop = decode.close
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        yield ahead(pool, decode, items, 2 * workers + 2 * batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()  # a decoder in a process may never end
        pool.shutdown(wait=True)


@contextmanager
def _threads(resources: Resources) -> Iterator[ThreadPoolExecutor]:
    """Threads for the model, which share the cores PyTorch may use."""
    streams = resources.streams or 1
    pool = ThreadPoolExecutor(streams, "model")
    with threads_of_a_stream(streams):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(plan: Plan, shard: int, decoded: Iterator[Decoded], size: int) -> Iterator[Batch]:
    """A shard's images in batches, each of one size in pixels: always the same batches for the same images."""
    waiting: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    failed: list[Decoded] = []
    for _ in plan.items_of(shard):
        one = next(decoded)
        if one.pixels is None:
            failed.append(one)
            continue
        group = waiting[one.pixels.shape]
        group.append(one)
        if len(group) == size or sum(map(len, waiting.values())) >= WAITING_BATCHES * size:
            fullest = max(waiting, key=lambda shape: len(waiting[shape]))
            yield Batch(shard, waiting.pop(fullest), failed)
            failed = []
    for group in waiting.values():
        yield Batch(shard, group, failed)
        failed = []
    yield Batch(shard, [], failed, last=True)


def _run(model: Model, batch: Batch) -> Batch:
    if not batch.images:
        return batch
    maps, finite = model([image.pixels for image in batch.images if image.pixels is not None])
    images = [replace(image, pixels=None) for image in batch.images]
    return replace(batch, images=images, maps=maps, finite=finite)


def _collected(
    batches: Iterable[Batch], decoder: Decoder, model: Model, make: Callable[[int], Shard], seen: Seen
) -> Iterator[Shard]:
    """Shards from batches; a row stays tied to its item until all of the shard's are there."""
    rows: dict[int, Row] = {}
    failed: list[Decoded] = []
    for batch in batches:
        wrong = list(batch.failed)
        for row, (image, finite) in enumerate(zip(batch.images, batch.finite, strict=True)):
            if finite:
                rows[image.item] = image, [level[row] for level in batch.maps]
            else:
                reason = f"its maps do not fit into {model.dtype}: they hold infinite values or NaN"
                wrong.append(replace(image, reason=reason))
        failed += wrong
        seen(len(batch.failed) + len(batch.images) - len(wrong), len(wrong))
        if batch.last:
            yield _filled(make(batch.shard), rows, failed, decoder)
            rows, failed = {}, []


def _filled(shard: Shard, rows: dict[int, Row], failed: list[Decoded], decoder: Decoder) -> Shard:
    items = decoder.items
    for item in sorted(rows):
        shard.ids.append(items.ids[item])
        shard.sources.append(items.where(item))
        shard.sizes.append(rows[item][0].size)
        shard.stamps.append(rows[item][0].stamp)
    shard.maps = [[rows[item][1][level] for item in sorted(rows)] for level in range(len(shard.levels))] if rows else []
    shard.failed = [
        Failure(items.ids[one.item], items.where(one.item), one.reason)
        for one in sorted(failed, key=lambda one: one.item)
    ]
    return shard


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
