"""featx extract: images to files of maps. featx index: their table, made anew."""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import featx

from .options import (
    Checkpoint,
    Model,
    OutIndices,
    Pretrained,
    RandomWeights,
    Size,
    Values,
    err,
    out,
    parse_indices,
    values_of,
)

if TYPE_CHECKING:
    from ..bulk import Summary
    from ..bulk.recipe import Pooling
    from ..bulk.run import Progress as Done
    from ..bulk.run import Runner

SHOWN_FAILURES = 20


class Precision(StrEnum):
    """Types that maps are stored in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


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


class Log(StrEnum):
    """How progress is told."""

    bar = "bar"
    json = "json"


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
    log: Annotated[Log, typer.Option(help="A bar, or a line of JSON per file.")] = Log.bar,
) -> None:
    """Write the maps of images as safetensors files with an index, or go on. Exits with 1 if an image failed."""
    from ..bulk import extract as extracted
    from ..bulk import find_items
    from ..bulk.allocator import keep_freed_memory

    items = find_items(inputs, column)  # before minutes go into weights
    poolings, batch = _poolings(pool), _batch_size(batch_size)
    runner, here = _runner(engine, address, device, workers, batch)
    values = values_of(pretrained, checkpoint, random_weights)
    extractor = _build(model, values, parse_indices(out_indices), "cls" in poolings)
    kept = keep_freed_memory()
    with _asked_to_stop() as stopped, LOGS[log]() as progress:
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
    if summary.failed:
        raise typer.Exit(1)


def index_folder(folder: Annotated[Path, typer.Argument(help="Folder that featx extract wrote.")]) -> None:
    """Write index.parquet of a folder of maps anew, from the headers of its files."""
    from ..bulk import write_index

    out.print(f"{folder / 'index.parquet'}: {write_index(folder)} images", soft_wrap=True)


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


class Stop:
    """Whether a signal asked to stop, and the status to exit with then."""

    status = 0

    def __call__(self) -> bool:
        return bool(self.status)

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The first signal lets the shard in work be finished, the second does not."""
        del frame
        if self.status:
            raise KeyboardInterrupt
        self.status = 128 + number
        err.print("finishing the file in work; once more to end at once", soft_wrap=True)


@contextmanager
def _asked_to_stop() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        err.print("ended at once: the file in work is lost, run the same command again to go on", soft_wrap=True)
        raise typer.Exit(stop.status or 130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _bar() -> "Iterator[Callable[[Done], None]]":
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=err)
    first: list[tuple[int, float]] = []

    def tell(done: "Done") -> None:
        count = done.written + done.failed
        if not first:  # what was there before says nothing about the speed of this run
            first.append((count, perf_counter()))
            shown.add_task("extracting", total=done.total, completed=count, told="")
            shown.start()
        rate = (count - first[0][0]) / max(perf_counter() - first[0][1], 1e-3)
        told = f"{rate:.1f} images/s" + (f", {done.failed} failed" if done.failed else "")
        shown.update(shown.task_ids[0], completed=count, told=told)

    try:
        yield tell
    finally:
        if first:
            shown.stop()


@contextmanager
def _lines() -> "Iterator[Callable[[Done], None]]":
    start = perf_counter()

    def tell(done: "Done") -> None:
        if done.shard is not None:
            shard = {"shard": done.shard.shard, "written": done.shard.written, "bytes": done.shard.nbytes}
            failed = {one.id: one.reason for one in done.shard.failed}
            rest = {"done": done.written + done.failed, "total": done.total, "seconds": perf_counter() - start}
            _line(event="shard", **shard, failed=failed, **rest)

    yield tell


def _line(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _tell_people(summary: "Summary", folder: Path, values: Values) -> None:
    size = f"{summary.nbytes / 2**20:.1f} MiB"
    before = len(summary.shards) - summary.made
    there = f", {before} of {len(summary.shards)} files were there" if before else ""
    out.print(f"maps of {summary.written} images, {size}, in {folder}{there}", soft_wrap=True)
    out.print(f"weights: {values}", soft_wrap=True)
    if summary.failed:
        out.print(f"{len(summary.failed)} images could not be extracted:", style="red")
        for id_, reason in list(summary.failed.items())[:SHOWN_FAILURES]:
            out.print(f"  {id_}: {reason}", soft_wrap=True)
        if len(summary.failed) > SHOWN_FAILURES:
            more = len(summary.failed) - SHOWN_FAILURES
            out.print(f"  … and {more} more: {folder / 'index.parquet'} has all of them", soft_wrap=True)


def _tell_machines(summary: "Summary", folder: Path, values: Values) -> None:
    counts = {"written": summary.written, "failed": len(summary.failed), "bytes": summary.nbytes}
    files = {"files": len(summary.shards), "made": summary.made, "left": summary.left}
    _line(event="summary", **counts, **files, folder=str(folder), weights=str(values))


LOGS = {Log.bar: _bar, Log.json: _lines}
TELL = {Log.bar: _tell_people, Log.json: _tell_machines}
