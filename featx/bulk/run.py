"""extract: every image of the inputs, to shards of maps in a folder, going on where an earlier run ended."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image

import featx

from ..errors import ArgumentError, FeatxError, ImageError
from ..factory import create_model
from ..features import OutIndices
from ..preprocessing import DataConfig
from ..wrappers import FeatureExtractWrapper
from .batch_size import fastest_batch_size
from .changes import has_changed
from .decode import decoder_for
from .engine import Seen
from .folder import INDEX, Plan, Slice, headers, opened, read_meta, settle, sweep
from .index import write_index
from .inputs import Input, find_items
from .job import Job, ShardReport, Worker
from .model import Model
from .parquet import require_pyarrow
from .recipe import Pooling, Recipe, Resources, Runtime
from .shard import Failure, Header, shard_name
from .sources import Items

SHARD_BYTES = 128 * 2**20
# Rows of a shard, so that what is lost by a kill stays small where rows are.
MOST_ROWS = 4096

Runner = Callable[[Job, Sequence[int], Seen, Callable[[], bool]], Iterator[ShardReport]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an extraction is: images with maps, images that failed, images in all; and the shard just written."""

    written: int
    failed: int
    total: int
    shard: ShardReport | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """What is in the folder after a run.

    written: images with maps, of this run and those before. failed: reason by id. shards: files, in order.
    nbytes: of all of them. made: shards that this run wrote. left: shards that are still to do, if it was stopped.
    """

    written: int
    failed: dict[str, str]
    shards: list[Path]
    nbytes: int
    made: int
    left: int


def locally(job: Job, numbers: Sequence[int], seen: Seen, stopped: Callable[[], bool]) -> Iterator[ShardReport]:
    """Extract shards in this process."""
    return Worker(job).extract_shards(numbers, seen=seen, stopped=stopped)


def extract(
    inputs: Input | Iterable[Input] | Items,
    model: str | FeatureExtractWrapper,
    out: str | Path,
    *,
    out_indices: OutIndices | None = None,
    pooling: Pooling | Sequence[Pooling] = "none",
    dtype: torch.dtype | str = "float32",
    size: int | None = None,
    keep_aspect: bool = False,
    scaled_decode: bool = False,
    runtime: Runtime = "plain",
    batch_size: int | None = 16,
    device: str = "cpu",
    workers: int | None = None,
    decoders: Literal["threads", "processes"] = "threads",
    streams: int | None = None,
    rows_per_shard: int | None = None,
    shard: str = "0/1",
    max_errors: int | None = None,
    retry_failed: bool = False,
    retry_changed: bool = False,
    name: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    runner: Runner = locally,
) -> Summary:
    """Write the maps of all images in `inputs` to the folder `out`, or go on with what is there already.

    A bad image is recorded with its reason and does not stop the others. A run that ended in whatever way goes on at
    the first missing shard when it is called again.

    inputs: files, folders, patterns, lists, tars, tables, datasets, addresses; see `featx.bulk.find_items`.
    model: an extractor in eval mode, or a name, which takes its published weights; `out_indices` then chooses levels.
    pooling, dtype, size, keep_aspect, scaled_decode, runtime: what is stored; see `featx.bulk.Recipe`.
    batch_size, device, workers, decoders, streams: how it is computed; see `featx.bulk.Resources`.
    rows_per_shard: images a file holds; None is as many as fill 128 MiB, at most 4096.
    shard: "i/n" does every n-th shard, from the i-th on; n processes together do all of them, into one folder.
    max_errors: failed images after which it stops; what is written stays.
    retry_failed, retry_changed: do shards again in which images failed, or whose image files are others now, as their
        size or the time of their last change tells.
    name: what `meta.json` calls an extractor; its class by default. recorded: what it says beside all this.
    progress: called after every batch, and after every shard that was written.
    stopped: asked after every shard whether to end there.
    runner: who extracts the shards that are missing.

    Raises ArgumentError for inputs that do not exist, arguments that are none of these or a model in training mode,
    OutputError if `out` cannot be written, is being written by another run or was made otherwise, InputError for a size
    the model does not take, ImageError after too many errors, MissingPackageError without pyarrow.
    """
    require_pyarrow()
    recipe = Recipe(
        pooling if isinstance(pooling, str) else tuple(pooling),
        str(dtype).removeprefix("torch."),
        size,
        keep_aspect,
        scaled_decode,
        runtime,
    )
    resources = Resources(batch_size, device, workers, decoders, streams).settled()
    part, folder = slice_of(shard), Path(out)
    items = inputs if isinstance(inputs, Items) else find_items(inputs)
    extractor, called = _extractor(model, out_indices, recipe)
    job = plan_job(folder, items, extractor, name or called, recipe, resources, rows_per_shard)
    with opened(folder, part):
        described = {**_environment(), **asdict(job.resources), **(recorded or {})}
        job = replace(job, plan=settle(folder, job.plan, described, items.ids, rows_per_shard))
        sweep(folder, part)
        count = _Count(job, part, max_errors, _redone(folder, retry_failed, retry_changed), progress)
        try:
            for report in runner(job, count.pending, count.seen, stopped):
                count.wrote(report)
        except BaseException:
            with suppress(FeatxError):  # what happened first matters
                write_index(folder)
            raise
        write_index(folder)
        return count.summary()


def plan_job(
    folder: Path,
    items: Items,
    extractor: FeatureExtractWrapper,
    name: str,
    recipe: Recipe,
    resources: Resources,
    rows_per_shard: int | None = None,
) -> Job:
    """The job as it would be in a new folder. `resources` are settled; nothing is written."""
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ArgumentError(f"rows_per_shard={rows_per_shard}: expected a positive number of images")
    image = np.asarray(decoder_for(extractor, items, recipe).prepare(Image.new("RGB", (96, 64))))
    maps, _ = Model(extractor, replace(recipe, runtime="plain"), resources.device, 1)([image])
    if resources.batch_size is None:
        resources = replace(resources, batch_size=_batch_size_in(folder))
    if resources.batch_size is None:
        fastest = fastest_batch_size(Model(extractor, recipe, resources.device, 1), image)
        resources = replace(resources, batch_size=fastest)
    rows = rows_per_shard or _rows(sum(map_.nbytes for map_ in maps), resources.batch_size or 1)
    plan = Plan(_decided(extractor, name, recipe), len(items), items.digest(), rows)
    return Job(folder, plan, items, extractor, recipe, resources)


def slice_of(text: str) -> Slice:
    """The slice that "i/n" names; ArgumentError if it is none."""
    try:
        number, of = map(int, text.split("/"))
    except ValueError:
        raise ArgumentError(f"shard={text!r}: expected i/n, such as 0/4 to 3/4 for four processes") from None
    if not 0 <= number < of:
        raise ArgumentError(f"shard={text!r}: expected i from 0 to n - 1, such as 0/4 to 3/4 for four processes")
    return Slice(number, of)


def _rows(nbytes: int, batch_size: int) -> int:
    """Rows of a shard whose rows have so many bytes: whole batches, if more than one fits."""
    rows = min(max(1, SHARD_BYTES // nbytes), MOST_ROWS)
    return rows - rows % batch_size if rows > batch_size else rows


def _batch_size_in(folder: Path) -> int | None:
    """The batch size that was measured when the folder was begun."""
    facts = read_meta(folder)
    return None if facts is None else facts["recorded"]["batch_size"]


def _extractor(
    model: str | FeatureExtractWrapper, out_indices: OutIndices | None, recipe: Recipe
) -> tuple[FeatureExtractWrapper, str]:
    if isinstance(model, str):
        output = "tokens" if "cls" in (recipe.pooling, *recipe.pooling) else "list"
        made = create_model(model, True, features_only=True, out_indices=out_indices, output=output)
        return made.eval(), model
    if out_indices is not None:
        raise ArgumentError("out_indices chooses levels of a model given by name; this extractor has its own")
    return model, type(model._source).__name__


def _decided(extractor: FeatureExtractWrapper, name: str, recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the numbers, as JSON gives it back."""
    poolings = recipe.poolings(len(extractor.feature_info))
    levels = [
        {**asdict(level), "pooling": pooling} for level, pooling in zip(extractor.feature_info, poolings, strict=True)
    ]
    facts = {**asdict(recipe), "preprocessing": asdict(extractor.data_config or DataConfig())}
    del facts["pooling"]
    decided = {"model": name, "weights": weights_digest(extractor), "levels": levels, **facts}
    return json.loads(json.dumps(decided))


def weights_digest(extractor: FeatureExtractWrapper) -> str:
    """SHA-256 of names and values of everything in the state dict."""
    digest = sha256()
    for name, tensor in sorted(extractor.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _environment() -> dict[str, Any]:
    versions = {
        "python": platform.python_version(),
        **{package.__name__: package.__version__ for package in (featx, torch, PIL)},
    }
    return {"versions": versions, "machine": platform.machine(), "directory": os.getcwd()}


def _redone(folder: Path, failed: bool, changed: bool) -> Callable[[Header], bool]:
    """Which shards that are there are done again."""
    facts = read_meta(folder) or {}
    return lambda header: bool((failed and header.failed) or (changed and has_changed(header, facts)))


class _Count:
    """What is done and what is left, as shards are written."""

    def __init__(
        self,
        job: Job,
        part: Slice,
        max_errors: int | None,
        redone: Callable[[Header], bool],
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._job, self._max_errors, self._progress = job, max_errors, progress
        self._done: dict[int, tuple[int, tuple[Failure, ...]]] = {}
        for number, header in headers(job.folder, job.plan, part):
            if not redone(header):
                self._done[number] = header.rows, tuple(header.failed)
        mine = range(part.number, job.plan.shards, part.of)
        self.pending = [number for number in mine if number not in self._done]
        self._total = sum(len(job.plan.items_of(number)) for number in mine)
        self._written = sum(rows for rows, _ in self._done.values())
        self._failed = sum(len(failed) for _, failed in self._done.values())
        self._made = 0
        self._tell()

    def seen(self, written: int, failed: int) -> None:
        self._written += written
        self._failed += failed
        if self._max_errors is not None and self._failed > self._max_errors:
            raise ImageError(
                f"{self._failed} images failed, more than the {self._max_errors} allowed: what is written stays, "
                f"{self._job.folder / INDEX} says why they did; run again with a larger max_errors to go on"
            )
        self._tell()

    def wrote(self, report: ShardReport) -> None:
        self._done[report.shard] = report.written, report.failed
        self._made += 1
        self._tell(report)

    def summary(self) -> Summary:
        files = [self._job.folder / shard_name(number) for number in sorted(self._done)]
        return Summary(
            sum(rows for rows, _ in self._done.values()),
            {one.id: one.reason for number in sorted(self._done) for one in self._done[number][1]},
            files,
            sum(file.stat().st_size for file in files),
            self._made,
            len(self.pending) - self._made,
        )

    def _tell(self, shard: ShardReport | None = None) -> None:
        if self._progress is not None:
            self._progress(Progress(self._written, self._failed, self._total, shard))
