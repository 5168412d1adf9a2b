"""The function `extract`, which writes the maps of images to shards in a folder and resumes interrupted runs."""

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
from .config import Fields, Recipe, Resources, Runtime, split_keywords
from .decoder import decoder_for
from .extractor import extractor_for
from .growth import Work, commit_if_complete, load_or_create_plan
from .index import write_index
from .inference import InferenceModel, fastest_batch_size, pads_batches
from .inputs import Input, find_items
from .meta import MOST_SHARDS, Plan, read_meta
from .output_folder import Slice, exclusive_lock, remove_partial_files
from .parquet_reader import require_pyarrow
from .pipeline import Job, OnProgress, ShardReport, Worker
from .prefetch import end_where_main_is_imported
from .progress import Progress, ProgressCounter, Summary, progress_callback, rerun_selector
from .provenance import environment, result_identity
from .sources import Items

SHARD_BYTES = 128 * 2**20
MOST_ROWS = 4096  # per shard, so that an interruption loses little work when rows are small

Runner = Callable[[Job, Sequence[int], OnProgress, Callable[[], bool]], Iterator[ShardReport]]


def run_locally(
    job: Job, numbers: Sequence[int], on_progress: OnProgress, stopped: Callable[[], bool]
) -> Iterator[ShardReport]:
    """The default runner: extract shards in this process."""
    return Worker(job).extract_shards(numbers, on_progress=on_progress, stopped=stopped)


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
    runner: Runner = run_locally,
    **fields: Unpack[Fields],
) -> Summary:
    """Write the maps of all images in `inputs` to the folder `out`, and resume if the folder exists.

    Unreadable images are recorded with the reason and skipped. After an interruption, call it again to resume at the
    first missing shard. If the inputs have changed, new images are written to new shards, and images that are no longer
    among the inputs are marked as removed; existing maps are not extracted again.

    Args:
        inputs: files, folders, patterns, lists, tars, tables, datasets, addresses; see `featx.bulk.find_items`.
        model: a name, which loads its published weights, or a module in eval mode: an extractor, or a model that can be
            wrapped in one, such as a classifier.
        out: path of the folder.
        out_indices: levels to store; not allowed for an extractor, which has its own levels.
        recipe: what is stored, a `featx.bulk.Recipe`, or its fields as keywords: pooling, dtype, size, keep_aspect,
            scaled_decode, runtime, color_management, allow_truncated, norm.
        resources: how it is computed, a `featx.bulk.Resources`, or its fields as keywords: batch_size, device, workers,
            decoders, streams, decode_timeout, max_pixels.
        rows_per_shard: images per file; None fills 128 MiB, at most 4096 images.
        shard: "i/n" extracts every n-th shard, starting with shard i; n processes can share one folder.
        max_errors: stop after more failed images than this; finished shards are kept.
        retry_failed: extract failed images again.
        retry_changed: extract images again whose file has another size or modification time.
        name: name of the model in `meta.json`; the class of a module by default.
        recorded: further entries of `recorded` in `meta.json`.
        progress: called with a Progress after every batch and every written shard; "bar" shows a progress bar, in
            notebooks as a widget.
        stopped: called after every shard; True stops the run.
        runner: extracts the missing shards.
        fields: fields of the recipe and the resources.

    Returns:
        The Summary of the folder after the run.

    Raises:
        ArgumentError: an input does not exist, an argument is invalid, an object was passed together with one of its
            fields, or the model is in training mode.
        ContractError: the module returns no maps.
        OutputError: `out` cannot be written, another run is writing to it, or it has other settings.
        InputError: the model does not support the image size.
        ImageError: more than `max_errors` images failed.
        MissingPackageError: pyarrow is not installed.
    """
    require_pyarrow()
    recipe, resources = split_keywords(recipe, resources, fields, ARGUMENTS)
    resources = resources.settled()
    if resources.decoders == "processes":
        end_where_main_is_imported()
    part, folder = parse_slice(shard), local(out)
    items = inputs if isinstance(inputs, Items) else find_items(inputs, out=folder)
    extractor, default_name = extractor_for(model, out_indices, recipe)
    plan = partial(plan_job, folder, items, extractor, name or default_name, recipe, resources, rows_per_shard)
    job = plan()
    metadata = {**(recorded or {}), **environment(), **asdict(job.resources)}
    select_reruns = rerun_selector(retry_failed, retry_changed)

    def load_plan() -> tuple[Job, Work]:
        same = recipe.runtime != "auto" or recorded_runtime(folder) in (None, job.recipe.runtime)
        current = job if same else plan()  # another job has created the folder meanwhile, with its machine's runtime
        return current, load_or_create_plan(folder, current.plan, items, select_reruns, metadata, rows_per_shard)

    with progress_callback(progress) as report, exclusive_lock(folder, part, load_plan) as (job, work):
        job = replace(job, plan=work.plan, items=work.items)
        remove_partial_files(folder, part)
        counter = ProgressCounter(job, part, work, max_errors, report)
        try:
            for shard_report in runner(job, counter.pending, counter.add_images, stopped):
                counter.add_shard(shard_report)
            commit_if_complete(folder)
        except BaseException:
            with suppress(FeatxError):  # report the first error
                write_index(folder)
            raise
        write_index(folder)
        return counter.summary()


ARGUMENTS = tuple(
    parameter.name for parameter in signature(extract).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY
)


def plan_job(
    folder: Path,
    items: Items,
    extractor: FeatureExtractWrapper,
    name: str,
    recipe: Recipe,
    resources: Resources,
    rows_per_shard: int | None = None,
) -> Job:
    """The job for a new folder. `resources` are settled; nothing is written.

    Its model runs once, so that unsupported inputs raise an error before the folder is created.
    """
    if extractor.training:
        raise ArgumentError("the model is in training mode, where maps depend on the batch: call model.eval() first")
    if rows_per_shard is not None and rows_per_shard < 1:
        raise ArgumentError(f"rows_per_shard={rows_per_shard}: expected a positive number of images")
    image = decoder_for(extractor, items, recipe).example()
    if recipe.runtime == "auto":
        recipe = replace(recipe, runtime=recorded_runtime(folder) or "auto")
    batch_size = resources.batch_size or _recorded_batch_size(folder)
    model = InferenceModel(extractor, recipe, replace(resources, batch_size=batch_size))
    model.batch_size = 1
    recipe = replace(recipe, runtime=model.runtime)
    maps, _ = model([image])
    batch_size = batch_size or fastest_batch_size(model, image)
    rows = rows_per_shard or _rows_per_shard(sum(map_.nbytes for map_ in maps), batch_size)
    plan = Plan(result_identity(extractor, name, recipe), len(items), items.digest(), rows, column=items.column)
    _require_plan(plan, maps)
    pads = pads_batches(len(items), batch_size, recipe)
    return Job(folder, plan, items, extractor, recipe, replace(resources, batch_size=batch_size), pads, model)


def _require_plan(plan: Plan, maps: Sequence[Tensor]) -> None:
    """ContractError if maps do not have the channels of feature_info; ArgumentError for more than MOST_SHARDS files."""
    for level, map_ in zip(plan.levels, maps, strict=True):
        if map_.shape[1] != level.chs:
            raise ContractError(f"the map of {level.name} has {map_.shape[1]} channels, its feature_info {level.chs}")
    if plan.shards > MOST_SHARDS:
        raise ArgumentError(
            f"rows_per_shard={plan.rows} makes {plan.shards} files of {plan.items} images, more than {MOST_SHARDS}: "
            "choose a larger number"
        )


def parse_slice(text: str) -> Slice:
    """The Slice of a text "i/n"; ArgumentError for another text."""
    try:
        number, of = map(int, text.split("/"))
    except ValueError:
        raise ArgumentError(f"shard={text!r}: expected i/n, such as 0/4 to 3/4 for four processes") from None
    if not 0 <= number < of:
        raise ArgumentError(f"shard={text!r}: expected i from 0 to n - 1, such as 0/4 to 3/4 for four processes")
    return Slice(number, of)


def _rows_per_shard(nbytes: int, batch_size: int) -> int:
    """Rows of `nbytes` bytes that fit into a shard; a multiple of the batch size if more than one batch fits."""
    rows = min(max(1, SHARD_BYTES // nbytes), MOST_ROWS)
    return rows - rows % batch_size if rows > batch_size else rows


def recorded_runtime(folder: Path) -> Runtime | None:
    """The runtime recorded in a folder; None if the folder is new.

    Raises:
        OutputError: this version of featx does not have the recorded runtime.
    """
    meta = read_meta(folder)
    recorded = None if meta is None else meta.plan.decided.get("runtime", "plain")
    for runtime in get_args(Runtime):
        if runtime == recorded:
            return runtime
    if recorded is not None:
        raise OutputError(
            f"{folder} was made with runtime={recorded!r}, which this version of featx does not have: name a new folder"
        )
    return None


def _recorded_batch_size(folder: Path) -> int | None:
    """The batch size that was measured for the folder's first run."""
    meta = read_meta(folder)
    return None if meta is None else meta.batch_size
