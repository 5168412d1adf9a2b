"""The pipeline from images to shards: prefetched decoding, concurrent batches, and results in order."""

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
from .inference import InferenceModel, share_threads
from .meta import Plan
from .prefetch import DecoderProcesses, prefetch
from .shard import Failure, Shard, write_shard
from .sources import Items

# Batches of images that wait in a shard for others of their size, before the largest group is run as a smaller batch.
WAITING_BATCHES = 4
Row = tuple[Decoded, list[Tensor]]  # an item's image, and its stored tensor per level
OnProgress = Callable[[int, int], object]  # called with the numbers of new images with maps, and of new failures


@dataclass(slots=True)
class Batch:
    """Images of one size and one shard, the failures since the previous batch, and whether it is the shard's last."""

    shard: int
    images: list[Decoded] = field(default_factory=list)
    failed: list[Decoded] = field(default_factory=list)
    last: bool = False
    maps: list[Tensor] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)


def shards(
    plan: Plan,
    numbers: Iterable[int],
    decoder: Decoder,
    model: InferenceModel,
    resources: Resources,
    on_progress: OnProgress,
) -> Generator[Shard, None, None]:
    """Extract and yield these shards in order. `resources` are settled."""
    with ExitStack() as stack:
        numbers = list(numbers)
        items = chain.from_iterable(map(plan.items_of, numbers))
        decoded = stack.enter_context(_decoding(decoder, resources, items, model.batch_size))
        streams = stack.enter_context(_threads(resources))
        batches = chain.from_iterable(_batches(plan, number, decoded, model.batch_size) for number in numbers)
        results = prefetch(streams, lambda batch: _run(model, batch), batches, resources.streams or 1)
        stack.callback(results.close)
        levels = model.extractor.feature_info.names()
        yield from _collect(
            results, decoder, model, lambda number: Shard(number, plan.fingerprint, levels), on_progress
        )


@contextmanager
def _decoding(decoder: Decoder, resources: Resources, items: Iterable[int], batch: int) -> Iterator[Iterator[Decoded]]:
    workers = resources.workers or 1
    decode, stop = decoder, lambda: None
    if resources.decoders == "processes":
        decode = DecoderProcesses(decoder, workers, resources.decode_timeout)
        stop = decode.close
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        yield prefetch(pool, decode, items, 2 * workers + 2 * batch)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()  # a decoder process may hang, so kill it before waiting
        pool.shutdown(wait=True)


@contextmanager
def _threads(resources: Resources) -> Iterator[ThreadPoolExecutor]:
    """Threads that run the model, each with an equal share of PyTorch's threads."""
    streams = resources.streams or 1
    pool = ThreadPoolExecutor(streams, "model")
    with share_threads(streams):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(plan: Plan, shard: int, decoded: Iterator[Decoded], size: int) -> Iterator[Batch]:
    """A shard's images in batches of one image size; the same images always give the same batches."""
    waiting: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    failed: list[Decoded] = []
    for _ in plan.items_of(shard):
        image = next(decoded)
        if image.pixels is None:
            failed.append(image)
            continue
        group = waiting[image.pixels.shape]
        group.append(image)
        if len(group) == size or sum(map(len, waiting.values())) >= WAITING_BATCHES * size:
            fullest = max(waiting, key=lambda shape: len(waiting[shape]))
            yield Batch(shard, waiting.pop(fullest), failed)
            failed = []
    for group in waiting.values():
        yield Batch(shard, group, failed)
        failed = []
    yield Batch(shard, [], failed, last=True)


def _run(model: InferenceModel, batch: Batch) -> Batch:
    if not batch.images:
        return batch
    maps, finite = model([image.pixels for image in batch.images if image.pixels is not None])
    images = [replace(image, pixels=None) for image in batch.images]
    return replace(batch, images=images, maps=maps, finite=finite)


def _collect(
    batches: Iterable[Batch],
    decoder: Decoder,
    model: InferenceModel,
    new_shard: Callable[[int], Shard],
    on_progress: OnProgress,
) -> Iterator[Shard]:
    """Combine batches into shards; rows are kept by item until the shard is complete."""
    rows: dict[int, Row] = {}
    failed: list[Decoded] = []
    for batch in batches:
        batch_failed = list(batch.failed)
        for row, (image, finite) in enumerate(zip(batch.images, batch.finite, strict=True)):
            if finite:
                rows[image.item] = image, [level[row] for level in batch.maps]
            else:
                reason = f"its maps do not fit into {model.dtype}: they hold infinite values or NaN"
                batch_failed.append(replace(image, reason=reason))
        failed += batch_failed
        on_progress(len(batch.failed) + len(batch.images) - len(batch_failed), len(batch_failed))
        if batch.last:
            yield _fill(new_shard(batch.shard), rows, failed, decoder)
            rows, failed = {}, []


def _fill(shard: Shard, rows: dict[int, Row], failed: list[Decoded], decoder: Decoder) -> Shard:
    """Add rows and failures to the shard in the order of their items, and return it."""
    items = decoder.items
    for item in sorted(rows):
        shard.ids.append(items.ids[item])
        shard.sources.append(items.where(item))
        shard.sizes.append(rows[item][0].size)
        shard.stamps.append(rows[item][0].stamp)
    shard.maps = [[rows[item][1][level] for item in sorted(rows)] for level in range(len(shard.levels))] if rows else []
    shard.failed = [
        Failure(items.ids[image.item], items.where(image.item), image.reason)
        for image in sorted(failed, key=lambda image: image.item)
    ]
    return shard


@dataclass(frozen=True, slots=True)
class Job:
    """What to extract, how, and into which folder, whose meta.json contains the plan.

    Attributes:
        resources: settled, with a batch size.
        pads: whether smaller batches are padded; see InferenceModel.
        model: ready to run in this process. A job without it can be pickled; other processes build their own model.
    """

    folder: Path
    plan: Plan
    items: Items
    extractor: FeatureExtractWrapper
    recipe: Recipe
    resources: Resources
    pads: bool
    model: InferenceModel | None = None


@dataclass(frozen=True, slots=True)
class ShardReport:
    """Report of a written shard: its number, the number of images with maps, the failures, and the file's bytes."""

    shard: int
    written: int
    failed: tuple[Failure, ...]
    nbytes: int


class Worker:
    """Extracts shards of a job. Writing a shard again gives the same file."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._decoder = decoder_for(job.extractor, job.items, job.recipe, job.resources.max_pixels)
        batch_size = job.resources.batch_size
        assert batch_size is not None
        self._model = job.model or InferenceModel(job.extractor, job.recipe, job.resources)
        self._model.batch_size, self._model.pads = batch_size, job.pads

    def extract_shard(self, number: int) -> ShardReport:
        """Write one shard; OutputError if it cannot be written. Its header and the report list failed images."""
        (report,) = self.extract_shards([number])
        return report

    def extract_shards(
        self,
        numbers: Iterable[int],
        *,
        on_progress: OnProgress = lambda *_: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[ShardReport]:
        """Write shards in order; writing, inference and decoding overlap.

        Args:
            numbers: of the shards.
            on_progress: called after every batch.
            stopped: called after every shard; True stops.
        """
        extracted = shards(self.job.plan, numbers, self._decoder, self._model, self.job.resources, on_progress)
        waiting: Future[ShardReport] | None = None
        with ThreadPoolExecutor(1, "write") as writer, closing(extracted):
            for shard in extracted:
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
