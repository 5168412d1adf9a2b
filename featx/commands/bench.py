"""featx bench: latency and throughput of a model on every runtime of this machine."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.box import SIMPLE
from rich.table import Table

import featx

from .options import Precision, Size, err, out

if TYPE_CHECKING:
    from .benchmark import Row

Names = Annotated[list[str], typer.Argument(help="Names of models; 'featx list' shows all.", metavar="NAME…")]
Batches = Annotated[str, typer.Option(help="Images per batch, one number or several.", metavar="N,M,…")]
Runtimes = Annotated[
    str | None, typer.Option(help="Runtimes of optimize; by default all that are available here.", metavar="A,B,…")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default PyTorch's setting.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:0.")]
Json = Annotated[bool, typer.Option("--json", help="Print all measurements as JSON instead of tables.")]
NOTABLE = 1.05  # smaller ratios are not worth a change


def bench(
    names: Names,
    batch_size: Batches = "1,16",
    size: Size = None,
    runtime: Runtimes = None,
    threads: Threads = None,
    dtype: Annotated[Precision, typer.Option(help="Of the optimized model; the unmodified model stays float32.")] = (
        Precision.float32
    ),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a model unmodified and on every runtime, and recommend one. Weights are random: speed does not change."""
    from featx.runtime.allocator import keep_freed_memory

    from .benchmark import Task, measure

    batches, place = _batches(batch_size), _device(device)
    chosen, missing = _choose(runtime)
    if threads is not None:
        torch.set_num_threads(threads)
    kept = keep_freed_memory()
    with err.status("…") as status:
        tasks = [Task(name, n, size, place, getattr(torch, dtype)) for name in names for n in batches]
        rows = [row for task in tasks for row in measure(task, chosen, status.update)]
    if as_json:
        measured = [asdict(row) for row in rows]
        out.print_json(json.dumps({"machine": _machine(place, kept), "rows": measured, "missing": missing}))
        return
    for name in names:
        _show(name, [row for row in rows if row.model == name])
    out.print(", ".join(f"{key} {value}" for key, value in _machine(place, kept).items()), soft_wrap=True)
    for runtime, why in missing.items():
        out.print(f"not measured: {runtime}: {why}", soft_wrap=True)
    for name in names:
        out.print(advice(name, [row for row in rows if row.model == name]), soft_wrap=True, style="bold")


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise featx.ArgumentError(f"--batch-size {text}: expected numbers of images separated by commas, such as 1,16")
    return batches


def _device(text: str) -> torch.device:
    try:
        place = torch.device(text)
    except RuntimeError as error:
        raise featx.ArgumentError(f"--device {text}: {error}") from error
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and not torch.cuda.is_available()):
        raise featx.ArgumentError(f"--device {text}: choose cpu, or cuda where PyTorch sees a GPU")
    return place


def _choose(text: str | None) -> tuple[list[Any], dict[str, str]]:
    """The runtimes to measure, and for requested runtimes that are not available, the reason."""
    from featx.runtime import runtimes

    known = runtimes()
    requested = list(known) if text is None else [part.strip() for part in text.split(",")]
    unknown = [name for name in requested if name not in known]
    if unknown:
        raise featx.ArgumentError(f"--runtime {text}: no {', '.join(unknown)}; choose among {', '.join(known)}")
    missing = {name: why for name in requested if (why := known[name]) is not None}
    return [name for name in requested if name not in missing], missing


def _machine(place: torch.device, kept: str | None) -> dict[str, Any]:
    from featx.runtime.available import processor

    facts: dict[str, Any] = {"featx": featx.__version__, "torch": torch.__version__, "processor": processor()}
    if place.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(place)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return {
        **facts,
        "threads": torch.get_num_threads(),
        "load": round(load, 1),
        "memory": kept or "as the system has it",
    }


def _show(name: str, rows: "Sequence[Row]") -> None:
    table = Table(title=name, box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("batch", "runtime", "dtype", "ms", "images/s", "ratio", "MiB", "difference", "ready s"):
        table.add_column(column, justify="left" if column in ("runtime", "dtype") else "right", no_wrap=True)
    for row in rows:
        table.add_row(f"{row.batch}", row.runtime, row.dtype, *(_numbers(row) if row.refused is None else ["refused"]))
    out.print(table)
    for refusal in dict.fromkeys(f"refused: {row.runtime}: {row.refused}" for row in rows if row.refused is not None):
        out.print(refusal, soft_wrap=True)


def _numbers(row: "Row") -> list[str]:
    assert row.seconds is not None
    agreement = f"cos {row.cosine:.5f}" if row.cosine is not None else _text(row.difference, ".0e")
    speed = (f"{row.seconds * 1e3:.1f}", _text(row.images_per_second, ".1f"), _text(row.ratio, ".2f"))
    return [*speed, _text(row.mebibytes, ".0f"), agreement, _text(row.ready, ".1f")]


def _text(number: float | None, form: str) -> str:
    return "" if number is None else format(number, form)


def advice(name: str, rows: "Sequence[Row]") -> str:
    """The recommendation for a model: the choice of runtime="auto", its mean speed-up, and the Python code."""
    chosen = [row for row in rows if row.chosen]
    mean = prod(row.ratio or 0.0 for row in chosen) ** (1 / max(1, len(chosen)))
    if not chosen or mean < NOTABLE:
        return f"{name}: use it as it comes; no runtime is {NOTABLE} times as fast here"
    lower = "" if chosen[0].dtype == "float32" else f", dtype=torch.{chosen[0].dtype}"
    names = dict.fromkeys(row.runtime for row in chosen)
    line = f"featx.optimize(model, runtime={next(iter(names)) if len(names) == 1 else 'auto'!r}{lower}, example=images)"
    by_batch = ", ".join(f"{row.runtime} for batches of {row.batch}" for row in chosen)
    return f"{name}: {mean:.2f} times as fast with {line}" + (f", which takes {by_batch}" if len(names) > 1 else "")
