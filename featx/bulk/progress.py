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
from .output_folder import INDEX, Slice, shard_headers
from .pipeline import Job, ShardReport
from .shard import shard_name
from .sources import LeftOut


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an extraction.

    Attributes:
        written: images with maps.
        failed: images that failed.
        total: all images.
        shard: the shard that was just written, if any.
    """

    written: int
    failed: int
    total: int
    shard: ShardReport | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of the folder after a run.

    Attributes:
        written: images with maps, of this run and earlier ones.
        failed: reasons of failed images, by id.
        shards: paths of the files, in order.
        nbytes: bytes of all files.
        made: shards that this run wrote.
        left: shards that are missing because the run was stopped.
        removed: images with maps that are no longer among the inputs.
        left_out: files among the inputs that are not images or could not be read.
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


def rerun_selector(failed: bool, changed: bool) -> Callable[[Header], Iterator[str]]:
    """A function that selects the ids of a shard to extract again: failed images, and images with changed files."""

    def select(header: Header) -> Iterator[str]:
        if failed:
            yield from (failure.id for failure in header.failed)
        if changed:
            yield from changed_ids(header)

    return select


class ProgressCounter:
    """Counts finished and pending images and shards during an extraction."""

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
        earlier = sum(rows + len(failed) for rows, failed in self._done.values())
        self._done |= {n: (header.rows, header.failed) for n, header in shard_headers(job.folder, job.plan, part)}
        numbers = [number for number in job.plan.numbers if number in part]
        self.pending = [number for number in numbers if number not in self._done]
        self._total = earlier + sum(len(job.plan.items_of(number)) for number in numbers)
        self._written = sum(rows for rows, _ in self._done.values())
        self._failed = sum(len(failed) for _, failed in self._done.values())
        self._made = 0
        self._report()

    def add_images(self, written: int, failed: int) -> None:
        """Count the images of a batch; ImageError if more than `max_errors` failed."""
        self._written += written
        self._failed += failed
        if self._max_errors is not None and self._failed > self._max_errors:
            raise ImageError(
                f"{self._failed} images failed, more than the {self._max_errors} allowed: finished files are kept, "
                f"{self._job.folder / INDEX} lists their failed images with the reasons; run again with a larger "
                "max_errors to resume"
            )
        self._report()

    def add_shard(self, report: ShardReport) -> None:
        """Count a shard that was written."""
        self._done[report.shard] = report.written, report.failed
        self._made += 1
        self._report(report)

    def summary(self) -> Summary:
        files = [self._job.folder / shard_name(number) for number in sorted(self._done)]
        return Summary(
            sum(rows for rows, _ in self._done.values()),
            {failure.id: failure.reason for number in sorted(self._done) for failure in self._done[number][1]},
            files,
            sum(file.stat().st_size for file in files),
            self._made,
            len(self.pending) - self._made,
            self._removed,
            self._job.items.left_out,
        )

    def _report(self, shard: ShardReport | None = None) -> None:
        if self._progress is not None:
            self._progress(Progress(self._written, self._failed, self._total, shard))


ProgressCallback = Callable[[Progress], object]


@contextmanager
def progress_callback(progress: ProgressCallback | Literal["bar"] | None) -> Iterator[ProgressCallback | None]:
    """A context that provides the function to call with each Progress: `progress` itself, or one that updates a bar.

    Raises:
        ArgumentError: `progress` is neither a function nor "bar".
        MissingPackageError: tqdm, which draws the bar, is not installed.
    """
    if progress is None or callable(progress):
        yield progress
        return
    if progress != "bar":
        raise ArgumentError(f"progress={progress!r}: expected a function of a featx.bulk.Progress, or 'bar'")
    with _tqdm()(desc="extracting", unit=" images") as bar:

        def update(done: Progress) -> None:
            count = done.written + done.failed
            if bar.total is None:  # images of earlier runs do not count for this run's throughput
                bar.reset(done.total)
                bar.initial = bar.n = count
            bar.set_postfix({"failed": done.failed} if done.failed else {}, refresh=False)
            bar.update(count - bar.n)

        yield update


def _tqdm() -> Any:
    """The class of progress bars for this environment: a widget in a notebook with ipywidgets, text otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a notebook without ipywidgets: the bar is text then
            from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingPackageError("progress='bar' needs tqdm: pip install 'featx[extract]'") from error
    return tqdm
