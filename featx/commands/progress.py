"""Progress output of `featx extract`, as a bar or as JSON lines, and the signals that stop it."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..errors import escaped, shortened
from .options import WeightSource, err, out

if TYPE_CHECKING:
    from ..bulk import LeftOut, Summary
    from ..bulk import Progress as Done

SHOWN_FAILURES = 20


class Log(StrEnum):
    """Format of the progress output."""

    bar = "bar"
    json = "json"


@contextmanager
def _bar() -> "Iterator[Callable[[Done], None]]":
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=err)
    first: list[tuple[int, float]] = []

    def update(done: "Done") -> None:
        count = done.written + done.failed
        if not first:  # images of earlier runs do not count for this run's throughput
            first.append((count, perf_counter()))
            bar.add_task("extracting", total=done.total, completed=count, rate="")
            bar.start()
        throughput = (count - first[0][0]) / max(perf_counter() - first[0][1], 1e-3)
        rate = f"{throughput:.1f} images/s" + (f", {done.failed} failed" if done.failed else "")
        bar.update(bar.task_ids[0], completed=count, rate=rate)

    try:
        yield update
    finally:
        if first:
            bar.stop()


@contextmanager
def _lines() -> "Iterator[Callable[[Done], None]]":
    start = perf_counter()

    def write(done: "Done") -> None:
        if done.shard is not None:
            shard = {"shard": done.shard.shard, "written": done.shard.written, "bytes": done.shard.nbytes}
            failed = {failure.id: failure.reason for failure in done.shard.failed}
            rest = {"done": done.written + done.failed, "total": done.total, "seconds": perf_counter() - start}
            _line(event="shard", **shard, failed=failed, **rest)

    yield write


def _line(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _print_summary(summary: "Summary", folder: Path, weights: WeightSource, device: str) -> None:
    size = f"{summary.nbytes / 2**20:.1f} MiB"
    existing = len(summary.shards) - summary.made
    note = f", {existing} of {len(summary.shards)} files were there" if existing else ""
    out.print(f"maps of {_images(summary.written)}, {size}, in {folder}{note}", soft_wrap=True)
    out.print(f"weights: {weights}; computed on {device}", soft_wrap=True)
    if summary.removed:
        out.print(f"no longer among the inputs, marked as removed: {_images(summary.removed)}", soft_wrap=True)
    if summary.failed:
        out.print(f"{_images(len(summary.failed))} could not be extracted (--retry-failed tries again):", style="red")
        for id_, reason in list(summary.failed.items())[:SHOWN_FAILURES]:
            out.print(f"  {escaped(id_)}: {escaped(reason)}", soft_wrap=True)
        if len(summary.failed) > SHOWN_FAILURES:
            more = len(summary.failed) - SHOWN_FAILURES
            out.print(f"  … and {more} more: {folder / 'index.parquet'} has all of them", soft_wrap=True)
    _print_left_out(summary.left_out)


def _print_left_out(left_out: "LeftOut") -> None:
    if left_out.kinds:
        out.print(f"left out: {left_out}", soft_wrap=True)
    if left_out.remarks:
        out.print("remarks:", style="red")
        for line in shortened([f"{path}: {remark}" for path, remark in left_out.remarks.items()], SHOWN_FAILURES):
            out.print(f"  {line}", soft_wrap=True)


def _write_summary(summary: "Summary", folder: Path, weights: WeightSource, device: str) -> None:
    counts = {"written": summary.written, "failed": len(summary.failed), "removed": summary.removed}
    files = {"files": len(summary.shards), "made": summary.made, "left": summary.left, "bytes": summary.nbytes}
    left_out = {"left_out": dict(summary.left_out.kinds), "remarks": dict(summary.left_out.remarks)}
    _line(event="summary", **counts, **files, **left_out, folder=str(folder), weights=str(weights), device=device)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def print_converted(target: Path, images: int, format: str) -> None:
    out.print(f"{target}: {_images(images)} as {format}", soft_wrap=True)


def _line_converted(target: Path, images: int, format: str) -> None:
    _line(event="converted", path=str(target), images=images, format=format)


LOGS = {Log.bar: _bar, Log.json: _lines}
SUMMARIES = {Log.bar: _print_summary, Log.json: _write_summary}
CONVERTED = {Log.bar: print_converted, Log.json: _line_converted}


class StopSignal:
    """Records a SIGINT or SIGTERM; calling it returns whether one has arrived. `status` is the exit status then."""

    status = 0

    def __call__(self) -> bool:
        return bool(self.status)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: the first signal lets the current shard finish, the second raises KeyboardInterrupt."""
        del frame
        if self.status:
            raise KeyboardInterrupt
        self.status = 128 + number
        err.print("finishing the current file; repeat to stop immediately", soft_wrap=True)


@contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """A context in which SIGINT and SIGTERM stop the extraction after the current file."""
    stop = StopSignal()
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        err.print("stopped immediately: the current file is lost, run the same command again to resume", soft_wrap=True)
        raise typer.Exit(stop.status or 130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
