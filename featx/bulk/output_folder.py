"""The folder of an extraction: what it says of itself, who may write to it, which shards are done or missing."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OutputError, shortened
from ..locks import MOMENT, locked
from ..whole_files import local, remove_parts
from .config import BEFORE
from .filesystems import names_in
from .header import Header, number_of, read_header
from .meta import META, NEXT, Meta, Plan, read_meta, write_meta

T = TypeVar("T")

INDEX = "index.parquet"
LONGEST_VALUE = 400  # characters of one in a message


@dataclass(frozen=True, slots=True)
class Slice:
    """Every `of`-th shard, from `number` on: the part of a job array that one process does."""

    number: int = 0
    of: int = 1

    def __contains__(self, shard: int) -> bool:
        return shard % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shards_in(folder: str) -> list[str]:
    """Names of the files of maps in a folder or at an address, in order, whole or not."""
    try:
        return [name for name in names_in(folder) if re.fullmatch(r"maps-[0-9]{6}\.safetensors", name)]
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error}") from error


@contextmanager
def opened(folder: Path, part: Slice, settled: Callable[[], T]) -> Iterator[T]:
    """Within the block nobody else writes these shards; the block has what `settled` returns.

    settled: called before, while nobody else describes the folder. OutputError if somebody writes these shards, or
    nothing can be written.
    """
    with ExitStack() as stack:
        try:
            local(folder).mkdir(parents=True, exist_ok=True)
            with described(folder):
                done = settled()
                _lock(stack, folder, part)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write to {folder}: {error}") from error
        yield done


def require_alone(folder: Path) -> None:
    """OutputError if any run writes shards of this folder."""
    for path in folder.glob(".lock-*-of-*"):
        with locked(path, f"another run is writing to {folder}"):
            pass


def _lock(stack: ExitStack, folder: Path, part: Slice) -> None:
    """Take the lock of this part, then see that nobody holds one of a part that overlaps with it."""
    subject = f"another run is writing to {folder}"
    stack.enter_context(locked(folder / _lock_name(part), subject))
    others = {path.name for path in folder.glob(".lock-*-of-*")} - {_lock_name(part)}
    for name in others:
        if not name.endswith(f"-of-{part.of}"):
            with locked(folder / name, subject):
                pass


def _lock_name(part: Slice) -> str:
    return f".lock-{part.number}-of-{part.of}"


@contextmanager
def described(folder: Path) -> Iterator[None]:
    """Within the block nobody else reads or writes what the folder says of itself."""
    with locked(folder / ".lock", f"another run is writing {META} or {INDEX} in {folder}", MOMENT):
        yield


def begun(folder: Path, meta: Meta, rows: int | None = None) -> Meta:
    """What the folder says of itself; what is given, which is written, if it is new.

    Called where nobody else describes it. rows: asked for, of a shard; None leaves them to the folder. Raises
    OutputError, showing what differs, if the folder is of another model or other options.
    """
    remove_parts(folder, rf"\.({META}|{NEXT}|{INDEX})\..*\.part")  # nobody else writes them now
    found = read_meta(folder)
    if found is None:
        if held := sorted(path.name for path in folder.iterdir() if not _is_own(path.name)):
            raise OutputError(f"{folder} is not empty ({', '.join(held[:3])}): name a new folder")
        write_meta(folder, meta)
        return meta
    differences = list(recipe_differences(found.plan.decided, meta.plan.decided))
    if rows not in (None, found.plan.rows):
        differences.append(f"rows per shard: {found.plan.rows} there, {rows} now")
    if differences:
        raise differing(folder, differences)
    return found


def differing(folder: Path, differences: Sequence[str]) -> OutputError:
    """The error for a folder that was made otherwise."""
    listed = "".join(f"\n  {line}" for line in shortened(differences))
    return OutputError(f"{folder} was made otherwise; name a new folder, or ask for the same:{listed}")


def _is_own(name: str) -> bool:
    return name.startswith(".lock") or (name.startswith(".") and name.endswith(".part"))


def recipe_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line per entry that two recipes, as `decided` of meta.json has them, do not share."""
    there, now = {**BEFORE, **there}, {**BEFORE, **now}
    for key in sorted({*there, *now}):
        if there.get(key) != now.get(key):
            yield f"{key}: {_brief(there.get(key))} there, {_brief(now.get(key))} now"


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def headers(folder: Path, plan: Plan, part: Slice = Slice()) -> Iterator[tuple[int, Header]]:
    """Number and header of the shards of a part that are there, whole, and of this plan."""
    for name in shards_in(str(folder)):
        number = number_of(name)
        if number not in part or number not in plan.numbers:
            continue
        try:
            header = read_header(str(folder / name), plan)
        except OutputError:
            continue
        yield number, header


def sweep(folder: Path, part: Slice) -> None:
    """Remove what runs that were killed left of files they were writing, of the shards of this part."""

    def is_ours(name: str) -> bool:
        number = re.search(r"\d+", name)
        return number is not None and int(number[0]) in part

    remove_parts(folder, r"\.maps-.*\.part", is_ours)


def missing_shards(meta: Meta, names: Iterable[str]) -> list[int]:
    """Numbers of the shards of all generations that are not among the names of a folder's files, ascending."""
    there = {number_of(name) for name in names}
    return [number for plan in meta.generations for number in plan.numbers if number not in there]


def require_complete(subject: str, meta: Meta, names: Iterable[str], partial: bool) -> None:
    """OutputError naming the files that are missing, unless a part was asked for.

    subject: how the message begins, such as "maps is unfinished".
    """
    missing = [] if partial else missing_shards(meta, names)
    if missing:
        listed = ", ".join(shortened(as_ranges(missing).split(", ")))
        raise OutputError(
            f"{subject}: {len(missing)} of {meta.shards} files are missing ({listed}). Run the featx extract command "
            "again that makes them, or featx merge the folders that have them, to finish it; or take what is there "
            "with --partial (in Python, partial=True)"
        )


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: "0, 3-5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
