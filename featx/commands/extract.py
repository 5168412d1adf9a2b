"""featx extract: images to files of maps. featx index: their table, made anew."""

import shlex
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import featx

from ..whole_files import local
from .convert import Formats
from .options import (
    Checkpoint,
    Model,
    OutIndices,
    Precision,
    Pretrained,
    RandomWeights,
    Size,
    Values,
    err,
    out,
    parse_indices,
    values_of,
)
from .stopping import asked_to_stop
from .telling import CONVERTED, LOGS, TELL, Log

if TYPE_CHECKING:
    from ..bulk.recipe import Pooling
    from ..bulk.run import Runner


class Decoders(StrEnum):
    """What images are decoded in."""

    threads = "threads"
    processes = "processes"


class Runtime(StrEnum):
    """How the model is run."""

    plain = "plain"
    eager = "eager"
    onednn = "onednn"


class Engine(StrEnum):
    """Who extracts."""

    local = "local"
    ray = "ray"


Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, patterns, lists (.txt, .csv), Parquet files, tars, saved datasets, addresses such as s3://…"
    ),
]
Folder = Annotated[Path, typer.Option("--out", help="Folder for the maps: a new one, or one to go on with.")]
Pool = Annotated[
    str, typer.Option(metavar="P[,P…]", help="none, mean, max, gem or cls: one for all levels, or one for each.")
]
BatchSize = Annotated[str, typer.Option(metavar="N|auto", help="Images the model sees at once; auto measures.")]
Format = Annotated[Formats | None, typer.Option("--format", help="Write the maps in this format too, to OUT.FORMAT.")]
Column = Annotated[str | None, typer.Option(help="Of tables and datasets, what holds the images or their paths.")]
KeepAspect = Annotated[bool, typer.Option("--keep-aspect", help="Whole images, their shorter side resized to --size.")]
Scaled = Annotated[bool, typer.Option("--scaled-decode", help="Decode large JPEGs at a fraction of their size.")]
Slice = Annotated[str, typer.Option(metavar="I/N", help="Do every N-th shard from the I-th on, as one of N jobs.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Images per file; as many as fill 128 MiB by default.")]
MaxErrors = Annotated[int | None, typer.Option(min=0, help="Stop once more images than this have failed.")]
Address = Annotated[str | None, typer.Option(help="Of the Ray cluster: auto, or host:port; without it one is started.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Do shards again in which images failed.")]
Changed = Annotated[bool, typer.Option("--retry-changed", help="Do shards again whose image files are others now.")]


def extract(
    inputs: Inputs,
    model: Model,
    folder: Folder,
    column: Column = None,
    out_indices: OutIndices = None,
    pretrained: Pretrained = False,
    checkpoint: Checkpoint = None,
    random_weights: RandomWeights = None,
    size: Size = None,
    keep_aspect: KeepAspect = False,
    pool: Pool = "none",
    dtype: Annotated[Precision, typer.Option(help="Type the maps are stored in.")] = Precision.float32,
    runtime: Annotated[Runtime, typer.Option(help="As it is, or as featx.optimize makes it.")] = Runtime.plain,
    batch_size: BatchSize = "16",
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1, …")] = "cpu",
    workers: Annotated[int | None, typer.Option(min=1, help="Images decoded at once; one per core by default.")] = None,
    decoders: Annotated[Decoders, typer.Option(help="Processes survive crashes of a decoder.")] = Decoders.threads,
    streams: Annotated[int | None, typer.Option(min=1, help="Batches the model runs on at once.")] = None,
    scaled_decode: Scaled = False,
    shard: Slice = "0/1",
    rows_per_shard: Rows = None,
    max_errors: MaxErrors = None,
    retry_failed: Retry = False,
    retry_changed: Changed = False,
    engine: Annotated[Engine, typer.Option(help="This process, or actors of a Ray cluster.")] = Engine.local,
    address: Address = None,
    format_: Format = None,
    log: Annotated[Log, typer.Option(help="A bar, or a line of JSON per file.")] = Log.bar,
) -> None:
    """Write the maps of images as safetensors files with an index, or go on. Exits with 1 if an image failed."""
    from ..bulk import convert, find_items
    from ..bulk import extract as extracted
    from ..runtime.allocator import keep_freed_memory

    poolings, batch, folder = _poolings(pool), _batch_size(batch_size), local(folder)
    target = _target(folder, format_, shard, poolings, keep_aspect)
    items = find_items(inputs, column)  # before minutes go into weights
    runner, here = _runner(engine, address, device, workers, batch)
    values = values_of(pretrained, checkpoint, random_weights)
    extractor = _build(model, values, parse_indices(out_indices), "cls" in poolings)
    kept = keep_freed_memory() is not None
    with asked_to_stop() as stopped, LOGS[log]() as progress:
        summary = extracted(
            items,
            extractor,
            folder,
            name=model,
            pooling=poolings[0] if len(poolings) == 1 else poolings,
            dtype=dtype.value,
            size=size,
            keep_aspect=keep_aspect,
            scaled_decode=scaled_decode,
            runtime=runtime.value,
            batch_size=batch,
            device=here,
            workers=workers,
            decoders=decoders.value,
            streams=streams,
            rows_per_shard=rows_per_shard,
            shard=shard,
            max_errors=max_errors,
            retry_failed=retry_failed,
            retry_changed=retry_changed,
            recorded={
                "weights": str(values),
                "freed memory is kept": kept,
                "command": shlex.join(sys.argv),
                "device": device,
            },
            progress=progress,
            stopped=stopped,
            runner=runner,
        )
    TELL[log](summary, folder, values)
    if summary.left:
        err.print(f"stopped with {summary.left} files left: run the same command again to go on", soft_wrap=True)
        raise typer.Exit(stopped.status)
    if target is not None and format_ is not None and summary.written:
        CONVERTED[log](target, convert(folder, target, format_.value), format_.value)
    if summary.failed:
        raise typer.Exit(1)


def index_folder(folder: Annotated[Path, typer.Argument(help="Folder that featx extract wrote.")]) -> None:
    """Write index.parquet of a folder of maps anew, from the headers of its files."""
    from ..bulk import write_index
    from ..bulk.completeness import as_ranges, missing_shards
    from ..bulk.folder import shards_in
    from ..bulk.meta import require_meta

    out.print(f"{folder / 'index.parquet'}: {write_index(folder)} images", soft_wrap=True)
    plan = require_meta(folder).plan
    if missing := missing_shards(plan, shards_in(str(folder))):
        err.print(f"unfinished: files {as_ranges(missing)} of {plan.shards} are missing", soft_wrap=True)


def _target(folder: Path, to: Formats | None, shard: str, poolings: Sequence[str], keep_aspect: bool) -> Path | None:
    """Where --format writes to; what would stop it at the end is told before anything is done."""
    if to is None:
        return None
    from ..bulk.formats import require_new, require_package

    if shard != "0/1":
        raise featx.ArgumentError(f"--format {to} writes all images: when all jobs are done, use featx convert")
    if keep_aspect and to is not Formats.webdataset and set(poolings) & {"none"}:
        raise featx.ArgumentError(f"--format {to} takes maps of one shape, which --keep-aspect has not: use webdataset")
    if to is Formats.parquet and "none" in poolings:
        raise featx.ArgumentError("--format parquet takes vectors, not maps: add --pool mean, or choose npy or zarr")
    target = Path(f"{folder if folder.name else Path.cwd()}.{to}")
    require_package(to.value)
    require_new(target)
    return target


def _poolings(text: str) -> "tuple[Pooling, ...]":
    """What --pool names; Recipe refuses what does not exist."""
    return tuple(cast("Pooling", part.strip()) for part in text.split(","))


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise featx.ArgumentError(f"--batch-size {text}: expected a number of images, or auto")
    return int(text)


def _runner(
    engine: Engine, address: str | None, device: str, workers: int | None, batch_size: int | None
) -> "tuple[Runner, str]":
    """Who extracts, and the device of this process."""
    from ..bulk.run import locally

    if engine is Engine.local:
        if address is not None:
            raise featx.ArgumentError(f"--address {address} is of a Ray cluster: add --engine ray")
        return locally, device
    if device != "cpu" and batch_size is None:
        raise featx.ArgumentError("--batch-size auto measures here, not on the cluster's GPUs: name a number of images")
    from ..bulk.ray import OnRay, require_ray

    require_ray()  # before minutes go into weights
    return OnRay(address, device, workers), "cpu"


def _build(name: str, values: Values, indices: list[int] | None, tokens: bool) -> featx.FeatureExtractWrapper:
    with values.given_to(name):
        extractor = featx.create_model(
            name,
            values.published,
            features_only=True,
            out_indices=indices,
            output="tokens" if tokens else "list",
            checkpoint_path=values.checkpoint,
        )
    return extractor.eval()
