"""extract: every image of the inputs, to shards of maps in a folder, going on where an earlier run ended."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Unpack, get_args

from torch import Tensor, nn

from ..errors import ArgumentError, ContractError, FeatxError, OutputError
from ..features import OutIndices
from ..whole_files import local
from ..wrappers import FeatureExtractWrapper
from .config import Fields, Recipe, Resources, Runtime, parted
from .decoder import decoder_for
from .extractor import extractor_for
from .growth import Work, finish, settle
from .index import write_index
from .inference import Model, fastest_batch_size, is_filled
from .inputs import Input, find_items
from .meta import MOST_SHARDS, Plan, read_meta
from .output_folder import Slice, opened, sweep
from .parquet_reader import require_pyarrow
from .pipeline import Job, Seen, ShardReport, Worker
from .prefetch import end_where_main_is_imported
from .progress import Count, Progress, Summary, again, shown
from .provenance import decided, environment
from .sources import Items

SHARD_BYTES = 128 * 2**20
# Rows of a shard, so that what is lost by a kill stays small where rows are.
MOST_ROWS = 4096

Runner = Callable[[Job, Sequence[int], Seen, Callable[[], bool]], Iterator[ShardReport]]


def locally(job: Job, numbers: Sequence[int], seen: Seen, stopped: Callable[[], bool]) -> Iterator[ShardReport]:
    """Extract shards in this process."""
    return Worker(job).extract_shards(numbers, seen=seen, stopped=stopped)


def extract(
    inputs: Input | Iterable[Input] | Items,
    model: str | nn.Module,
    out: str | Path,
    *,
    out_indices: OutIndices | None = None,
    recipe: Recipe | None = None,
    resources: Resources | None = None,
    rows_per_shard: int | None = None,
    shard: str = "0/1",
    max_errors: int | None = None,
    retry_failed: bool = False,
    retry_changed: bool = False,
    name: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], object] | Literal["bar"] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    runner: Runner = locally,
    **fields: Unpack[Fields],
) -> Summary:
    """Write the maps of all images in `inputs` to the folder `out`, or go on with what is there already.

    A bad image is recorded with its reason and does not stop the others. A run that ended in whatever way goes on at
    the first missing shard when it is called again. Images that are new by then get shards of their own, and those that
    are no longer among the inputs are marked; nothing that was extracted is extracted again.

    inputs: files, folders, patterns, lists, tars, tables, datasets, addresses; see `featx.bulk.find_items`.
    model: a name, which takes its published weights, or a module in eval mode: an extractor, or a model that can be
        made one, such as a classifier. `out_indices` chooses levels of any but an extractor, which has its own.
    recipe: what is stored, a `featx.bulk.Recipe`, or its fields as keywords: pooling, dtype, size, keep_aspect,
        scaled_decode, runtime, color_management, allow_truncated, norm.
    resources: how it is computed, a `featx.bulk.Resources`, or its fields as keywords: batch_size, device, workers,
        decoders, streams, decode_timeout, max_pixels.
    rows_per_shard: images a file holds; None is as many as fill 128 MiB, at most 4096.
    shard: "i/n" does every n-th shard, from the i-th on; n processes together do all of them, into one folder.
    max_errors: failed images after which it stops; what is written stays.
    retry_failed, retry_changed: do images again that failed, or whose files are others now, as their size or the time
        of their last change tells.
    name: what `meta.json` calls a model in hand; its class by default. recorded: what it says beside all this.
    progress: called after every batch, and after every shard that was written; "bar" shows a progress bar, in notebooks
        as a widget.
    stopped: asked after every shard whether to end there.
    runner: who extracts the shards that are missing.

    Raises ArgumentError for inputs that do not exist, arguments that are none of these, fields beside the object that
    has them or a model in training mode, ContractError for a module that gives no maps,
    OutputError if `out` cannot be written, is being written by another run or was made otherwise, InputError for a size
    the model does not take, ImageError after too many errors, MissingPackageError without pyarrow.
    """
    require_pyarrow()
    recipe, resources = parted(recipe, resources, fields, ARGUMENTS)
    resources = resources.settled()
    if resources.decoders == "processes":
        end_where_main_is_imported()
    part, folder = slice_of(shard), local(out)
    items = inputs if isinstance(inputs, Items) else find_items(inputs, out=folder)
    extractor, called = extractor_for(model, out_indices, recipe)
    plan = partial(plan_job, folder, items, extractor, name or called, recipe, resources, rows_per_shard)
    job = plan()
    described = {**(recorded or {}), **environment(), **asdict(job.resources)}
    redo = again(retry_failed, retry_changed)

    def settled() -> tuple[Job, Work]:
        same = recipe.runtime != "auto" or runtime_in(folder) in (None, job.recipe.runtime)
        mine = job if same else plan()  # another job has begun the folder meanwhile, on the runtime of its machine
        return mine, settle(folder, mine.plan, items, redo, described, rows_per_shard)

    with shown(progress) as tell, opened(folder, part, settled) as (job, work):
        job = replace(job, plan=work.plan, items=work.items)
        sweep(folder, part)
        count = Count(job, part, work, max_errors, tell)
        try:
            for report in runner(job, count.pending, count.seen, stopped):
                count.wrote(report)
            finish(folder)
        except BaseException:
            with suppress(FeatxError):  # what happened first matters
                write_index(folder)
            raise
        write_index(folder)
        return count.summary()


ARGUMENTS = tuple(one.name for one in signature(extract).parameters.values() if one.kind is one.KEYWORD_ONLY)


def plan_job(
    folder: Path,
    items: Items,
    extractor: FeatureExtractWrapper,
    name: str,
    recipe: Recipe,
    resources: Resources,
    rows_per_shard: int | None = None,
) -> Job:
    """The job as it would be in a new folder. `resources` are settled; nothing is written.

    Its model has run once: what a runtime refuses is known before there is a folder.
    """
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ArgumentError(f"rows_per_shard={rows_per_shard}: expected a positive number of images")
    image = decoder_for(extractor, items, recipe).example()
    if recipe.runtime == "auto":
        recipe = replace(recipe, runtime=runtime_in(folder) or "auto")
    model = Model(extractor, recipe, replace(resources, batch_size=resources.batch_size or _batch_size_in(folder)))
    model.batch_size = 1
    recipe = replace(recipe, runtime=model.runtime)
    maps, _ = model([image])
    batch_size = resources.batch_size or _batch_size_in(folder) or fastest_batch_size(model, image)
    rows = rows_per_shard or _rows(sum(map_.nbytes for map_ in maps), batch_size)
    plan = Plan(decided(extractor, name, recipe), len(items), items.digest(), rows, column=items.column)
    _require_plan(plan, maps)
    fills = is_filled(len(items), batch_size, recipe)
    return Job(folder, plan, items, extractor, recipe, replace(resources, batch_size=batch_size), fills, model)


def _require_plan(plan: Plan, maps: Sequence[Tensor]) -> None:
    """ContractError if maps are not what the levels say; ArgumentError for more files than there are names of."""
    for level, map_ in zip(plan.levels, maps, strict=True):
        if map_.shape[1] != level.chs:
            raise ContractError(f"the map of {level.name} has {map_.shape[1]} channels, its feature_info {level.chs}")
    if plan.shards > MOST_SHARDS:
        raise ArgumentError(
            f"rows_per_shard={plan.rows} makes {plan.shards} files of {plan.items} images, more than {MOST_SHARDS}: "
            "choose a larger number"
        )


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


def runtime_in(folder: Path) -> Runtime | None:
    """The runtime that a folder was begun with; None if it is new.

    Raises:
        OutputError: this version of featx has no such runtime.
    """
    found = read_meta(folder)
    stated = None if found is None else found.plan.decided.get("runtime", "plain")
    for runtime in get_args(Runtime):
        if runtime == stated:
            return runtime
    if stated is not None:
        raise OutputError(
            f"{folder} was made with runtime={stated!r}, which this version of featx has not: name a new folder"
        )
    return None


def _batch_size_in(folder: Path) -> int | None:
    """The batch size that was measured when the folder was begun."""
    found = read_meta(folder)
    return None if found is None else found.batch_size
