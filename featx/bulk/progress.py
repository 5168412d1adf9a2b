"""Progress of an extraction, its summary, and a progress bar: a widget in notebooks, text elsewhere."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ArgumentError, ImageError, MissingPackageError
from .growth import Work
from .header import Header
from .integrity import changed_ids
from .output_folder import INDEX, Slice, headers
from .pipeline import Job, ShardReport
from .shard import shard_name
from .sources import LeftOut


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
    removed: images that have maps there and are no longer among the inputs.
    left_out: what was found among the inputs and is no image, or could not be looked into.
    """

    written: int
    failed: dict[str, str]
    shards: list[Path]
    nbytes: int
    made: int
    left: int
    removed: int = 0
    left_out: LeftOut = LeftOut()

    def __repr__(self) -> str:
        files = f"{self.made} of {len(self.shards)} files made now, {self.left} left"
        return f"Summary({self.written} images, {len(self.failed)} failed, {files}, {self.nbytes / 2**20:.1f} MiB)"


def again(failed: bool, changed: bool) -> Callable[[Header], Iterator[str]]:
    """Which images of a shard are done again: those that failed, and those whose files are others now."""

    def ids(header: Header) -> Iterator[str]:
        if failed:
            yield from (one.id for one in header.failed)
        if changed:
            yield from changed_ids(header)

    return ids


class Count:
    """What is done and what is left, as shards are written."""

    def __init__(
        self,
        job: Job,
        part: Slice,
        work: Work,
        max_errors: int | None,
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._job, self._max_errors, self._progress = job, max_errors, progress
        self._removed = work.removed
        self._done = {header.number: (header.rows, header.failed) for header in work.before}
        before = sum(rows + len(failed) for rows, failed in self._done.values())
        self._done |= {n: (header.rows, header.failed) for n, header in headers(job.folder, job.plan, part)}
        mine = [number for number in job.plan.numbers if number in part]
        self.pending = [number for number in mine if number not in self._done]
        self._total = before + sum(len(job.plan.items_of(number)) for number in mine)
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
                f"{self._job.folder / INDEX} says why those of finished files did; run again with a larger max_errors "
                "to go on"
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
            self._removed,
            self._job.items.left_out,
        )

    def _tell(self, shard: ShardReport | None = None) -> None:
        if self._progress is not None:
            self._progress(Progress(self._written, self._failed, self._total, shard))


Tell = Callable[[Progress], object]


@contextmanager
def shown(progress: Tell | Literal["bar"] | None) -> Iterator[Tell | None]:
    """Within the block, what to call with every Progress: the function given, or a bar that ends with the block.

    Raises ArgumentError for what is neither, MissingPackageError for a bar without tqdm.
    """
    if progress is None or callable(progress):
        yield progress
        return
    if progress != "bar":
        raise ArgumentError(f"progress={progress!r}: expected a function of a featx.bulk.Progress, or 'bar'")
    with _tqdm()(desc="extracting", unit=" images") as bar:

        def tell(done: Progress) -> None:
            count = done.written + done.failed
            if bar.total is None:  # what was there before says nothing about the speed of this run
                bar.reset(done.total)
                bar.initial = bar.n = count
            bar.set_postfix({"failed": done.failed} if done.failed else {}, refresh=False)
            bar.update(count - bar.n)

        yield tell


def _tqdm() -> Any:
    """The class of bars that the place has: a widget if it is a notebook with ipywidgets, text otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a notebook has no ipywidgets: the bar is text then
            from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingPackageError("progress='bar' needs tqdm: pip install 'featx[extract]'") from error
    return tqdm
