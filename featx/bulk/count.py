"""What is done of an extraction and what is left, told as it goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError
from .changes import has_changed
from .folder import INDEX, Slice, headers
from .header import Header
from .job import Job, ShardReport
from .left_out import LeftOut
from .meta import read_meta
from .shard import Failure, shard_name


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
    left_out: what was found among the inputs and is no image, or could not be looked into.
    """

    written: int
    failed: dict[str, str]
    shards: list[Path]
    nbytes: int
    made: int
    left: int
    left_out: LeftOut = LeftOut()


def redone(folder: Path, failed: bool, changed: bool) -> Callable[[Header], bool]:
    """Which shards that are there are done again."""
    found = read_meta(folder)
    directory = "" if found is None else found.directory
    return lambda header: bool((failed and header.failed) or (changed and has_changed(header, directory)))


class Count:
    """What is done and what is left, as shards are written."""

    def __init__(
        self,
        job: Job,
        part: Slice,
        max_errors: int | None,
        is_to_redo: Callable[[Header], bool],
        progress: Callable[[Progress], object] | None,
    ) -> None:
        self._job, self._max_errors, self._progress = job, max_errors, progress
        self._done: dict[int, tuple[int, tuple[Failure, ...]]] = {}
        for number, header in headers(job.folder, job.plan, part):
            if not is_to_redo(header):
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
            self._job.items.left_out,
        )

    def _tell(self, shard: ShardReport | None = None) -> None:
        if self._progress is not None:
            self._progress(Progress(self._written, self._failed, self._total, shard))
