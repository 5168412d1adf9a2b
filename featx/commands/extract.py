"""featx extract: write the maps of images to files. featx index: rebuild the index of these files."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

import featx

from ..whole_files import local
from .folders import Formats
from .options import (
    CheckpointPath,
    Model,
    OutIndices,
    Precision,
    Pretrained,
    RandomWeights,
    Size,
    WeightSource,
    err,
    out,
    parse_indices,
    weight_source,
)
from .progress import CONVERTED, LOGS, SUMMARIES, Log, stop_on_signal

if TYPE_CHECKING:
    from ..bulk.config import Pooling, Recipe
    from ..bulk.extraction import Runner


class Decoders(StrEnum):
    """Workers that decode images."""

    threads = "threads"
    processes = "processes"


class Runtime(StrEnum):
    """Runtime of the model."""

    plain = "plain"
    eager = "eager"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    auto = "auto"


class ColorManagement(StrEnum):
    """Handling of ICC profiles."""

    srgb = "srgb"
    none = "none"


class RunnerName(StrEnum):
    """Where the extraction runs."""

    local = "local"
    ray = "ray"


Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, patterns, lists (.txt, .csv, - for stdin), Parquet files, tars, zips, datasets, addresses"
    ),
]
Folder = Annotated[Path, typer.Option("--out", help="Output folder: a new one, or one to resume.")]
Poolings = Annotated[
    str,
    typer.Option(
        metavar="P[,P…]", help="none, mean, max, gem or cls: one for all levels, or one per level; or pre_logits."
    ),
]
Norm = Annotated[
    bool | None,
    typer.Option(
        "--norm/--no-norm",
        help="Apply the last norm of a ViT to maps and class tokens; by default only with --pooling cls.",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="Where the model runs: auto (the GPU that PyTorch finds, or else the CPU), cpu, cuda, cuda:1, …"),
]
BatchSize = Annotated[str, typer.Option(metavar="N|auto", help="Images per batch; auto measures the fastest.")]
Format = Annotated[Formats | None, typer.Option("--format", help="Also write the maps in this format, to OUT.FORMAT.")]
Column = Annotated[str | None, typer.Option(help="Column of tables and datasets with the images or their paths.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Leave out files and folders with this name or path; repeatable."),
]
KeepAspect = Annotated[bool, typer.Option("--keep-aspect", help="Use whole images, shorter side resized to --size.")]
Scaled = Annotated[bool, typer.Option("--scaled-decode", help="Decode large JPEGs at a fraction of their size.")]
Colors = Annotated[ColorManagement, typer.Option(help="Convert images with an ICC profile to sRGB, or not.")]
Truncated = Annotated[bool, typer.Option("--allow-truncated", help="Accept truncated JPEGs; the missing part is gray.")]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Timeout for decoding an image; needs --decoders processes.")
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Maximum pixels of an image; by default Pillow's limit.")]
Slice = Annotated[str, typer.Option(metavar="I/N", help="Extract every N-th shard from shard I on, as one of N jobs.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Images per file; by default as many as fill 128 MiB.")]
MaxErrors = Annotated[int | None, typer.Option(min=0, help="Stop after more failed images than this.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster: auto, or host:port; by default starts a cluster.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs per actor on Ray; by default a share of the node.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Extract failed images again.")]
Changed = Annotated[bool, typer.Option("--retry-changed", help="Extract images again whose files changed.")]


def extract(
    inputs: Inputs,
    model: Model,
    folder: Folder,
    column: Column = None,
    exclude: Exclude = None,
    out_indices: OutIndices = None,
    pretrained: Pretrained = False,
    checkpoint_path: CheckpointPath = None,
    random_weights: RandomWeights = None,
    size: Size = None,
    keep_aspect: KeepAspect = False,
    pooling: Poolings = "none",
    norm: Norm = None,
    dtype: Annotated[Precision, typer.Option(help="Dtype of the stored maps.")] = Precision.float32,
    runtime: Annotated[
        Runtime, typer.Option(help="plain is the unmodified model; the others optimize it, auto with the fastest.")
    ] = Runtime.plain,
    batch_size: BatchSize = "16",
    device: Device = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Concurrent decoders; by default one per core.")] = None,
    decoders: Annotated[Decoders, typer.Option(help="Processes survive crashes.")] = Decoders.threads,
    streams: Annotated[int | None, typer.Option(min=1, help="Concurrent batches.")] = None,
    scaled_decode: Scaled = False,
    color_management: Colors = ColorManagement.srgb,
    allow_truncated: Truncated = False,
    decode_timeout: Timeout = None,
    max_pixels: MaxPixels = None,
    shard: Slice = "0/1",
    rows_per_shard: Rows = None,
    max_errors: MaxErrors = None,
    retry_failed: Retry = False,
    retry_changed: Changed = False,
    runner: Annotated[RunnerName, typer.Option(help="Run in this process, or on a Ray cluster.")] = RunnerName.local,
    address: Address = None,
    cpus: Cpus = None,
    format_: Format = None,
    log: Annotated[Log, typer.Option(help="Progress as a bar, or as a JSON line per file.")] = Log.bar,
) -> None:
    """Write the maps of images to safetensors files with an index, or resume.

    The exit status is 1 if an image failed, and 2 if no image could be extracted.
    """
    from ..bulk import Recipe, Resources, convert, find_items
    from ..bulk import extract as extracted
    from ..runtime.allocator import keep_freed_memory

    _require_used(runner, {"--address": address, "--cpus": cpus, "--workers": workers, "--streams": streams})
    poolings, batch, folder = _poolings(pooling), _batch_size(batch_size), local(folder)
    recipe = Recipe(
        poolings[0] if len(poolings) == 1 else poolings,
        dtype.value,
        size,
        keep_aspect,
        scaled_decode,
        runtime.value,
        color_management.value,
        allow_truncated,
        norm,
    )
    target = _target(folder, format_, shard, poolings, keep_aspect)
    items = find_items(inputs, column, exclude=exclude or (), out=folder)  # before the weights are loaded
    run, local_device = _runner(runner, address, device, cpus, batch, runtime)
    resources = Resources(batch, local_device, workers, decoders.value, streams, decode_timeout, max_pixels).settled()
    weights = weight_source(pretrained, checkpoint_path, random_weights)
    extractor = _build(model, weights, parse_indices(out_indices), recipe)
    kept = keep_freed_memory() is not None
    with stop_on_signal() as stopped, LOGS[log]() as progress:
        summary = extracted(
            items,
            extractor,
            folder,
            name=model,
            recipe=recipe,
            resources=resources,
            rows_per_shard=rows_per_shard,
            shard=shard,
            max_errors=max_errors,
            retry_failed=retry_failed,
            retry_changed=retry_changed,
            recorded={
                "weights": str(weights),
                "freed memory is kept": kept,
                "command": shlex.join(sys.argv),
                **({"device of the actors": device} if runner is RunnerName.ray else {}),
            },
            progress=progress,
            stopped=stopped,
            runner=run,
        )
    place = resources.device if runner is RunnerName.local else f"{device} of the cluster"
    SUMMARIES[log](summary, folder, weights, place)
    if summary.left:
        err.print(f"stopped with {summary.left} files left: run the same command again to resume", soft_wrap=True)
        raise typer.Exit(stopped.status)
    if target is not None and format_ is not None and summary.written:
        CONVERTED[log](target, convert(folder, target, format_.value), format_.value)
    if summary.failed:
        raise typer.Exit(1 if summary.written else 2)


def index_folder(folder: Annotated[Path, typer.Argument(help="Folder that featx extract wrote.")]) -> None:
    """Rebuild index.parquet of a folder of maps from the headers of its files."""
    from ..bulk import write_index
    from ..bulk.meta import require_meta
    from ..bulk.output_folder import as_ranges, missing_shards, shards_in

    out.print(f"{folder / 'index.parquet'}: {write_index(folder)} images", soft_wrap=True)
    meta = require_meta(folder)
    if missing := missing_shards(meta, shards_in(str(folder))):
        err.print(f"unfinished: files {as_ranges(missing)} of {meta.shards} are missing", soft_wrap=True)


def _target(folder: Path, to: Formats | None, shard: str, poolings: Sequence[str], keep_aspect: bool) -> Path | None:
    """The output path of --format; raises errors of the conversion before the extraction starts."""
    if to is None:
        return None
    from ..bulk.converters import require_new, require_package

    if shard != "0/1":
        raise featx.ArgumentError(f"--format {to} writes all images: when all jobs are done, use featx convert")
    if keep_aspect and to is not Formats.webdataset and set(poolings) & {"none"}:
        raise featx.ArgumentError(f"--format {to} takes maps of one shape, not those of --keep-aspect: use webdataset")
    if to is Formats.parquet and "none" in poolings:
        raise featx.ArgumentError("--format parquet takes vectors, not maps: add --pooling mean, or choose npy or zarr")
    target = Path(f"{folder if folder.name else Path.cwd()}.{to}")
    require_package(to.value)
    require_new(target)
    return target


def _poolings(text: str) -> "tuple[Pooling, ...]":
    """The poolings of --pooling, which Recipe validates."""
    return tuple(cast("Pooling", part.strip()) for part in text.split(","))


def _batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise featx.ArgumentError(f"--batch-size {text}: expected a number of images, or auto")
    return int(text)


def _runner(
    runner: RunnerName, address: str | None, device: str, cpus: int | None, batch_size: int | None, runtime: Runtime
) -> "tuple[Runner, str]":
    """The runner, and the device of this process."""
    from ..bulk.extraction import run_locally

    if runner is RunnerName.local:
        return run_locally, device
    if device != "cpu" and batch_size is None:
        raise featx.ArgumentError(
            "--batch-size auto measures here, not on the cluster's GPUs: name a number of images, or add --device cpu"
        )
    if device != "cpu" and runtime is Runtime.auto:
        raise featx.ArgumentError(
            "--runtime auto measures here, not on the cluster's GPUs: choose eager, or add --device cpu"
        )
    from ..bulk.ray_runner import OnRay, require_ray

    require_ray()  # before the weights are loaded
    return OnRay(address, device, cpus), "cpu"


def _require_used(runner: RunnerName, options: Mapping[str, object]) -> None:
    """Raise ArgumentError for options that this runner does not use."""
    for option, value in options.items():
        if value is not None and runner is RunnerName.local and option in ("--address", "--cpus"):
            raise featx.ArgumentError(f"{option} {value} is for a Ray cluster: add --runner ray")
        if value is not None and runner is RunnerName.ray and option in ("--workers", "--streams"):
            raise featx.ArgumentError(
                f"{option} {value} is for --runner local: on Ray, an actor uses all of its CPUs; choose --cpus N"
            )


def _build(
    name: str, weights: WeightSource, indices: list[int] | None, recipe: "Recipe"
) -> featx.FeatureExtractWrapper:
    from ..bulk.extractor import create_extractor

    with weights.loading(name):
        create = partial(featx.create_model, name, weights.published, checkpoint_path=weights.checkpoint_path)
        return create_extractor(create, indices, recipe)
