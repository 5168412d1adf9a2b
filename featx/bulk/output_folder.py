"""The output folder of an extraction: its meta.json, its locks, and its finished and missing shards."""

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
from .config import LEGACY_DEFAULTS
from .filesystems import names_in
from .header import Header, number_of, read_header
from .meta import META, NEXT, Meta, Plan, read_meta, write_meta

T = TypeVar("T")

INDEX = "index.parquet"
LONGEST_VALUE = 400  # characters of a value in an error message


@dataclass(frozen=True, slots=True)
class Slice:
    """Every `of`-th shard, starting with shard `number`: the part that one process of a job array extracts."""

    number: int = 0
    of: int = 1

    def __contains__(self, shard: int) -> bool:
        return shard % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shards_in(folder: str) -> list[str]:
    """Names of the shards in a folder or at an address, in order, damaged ones included."""
    try:
        return [name for name in names_in(folder) if re.fullmatch(r"maps-[0-9]{6}\.safetensors", name)]
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error}") from error


@contextmanager
def exclusive_lock(folder: Path, part: Slice, load_plan: Callable[[], T]) -> Iterator[T]:
    """A context in which no other process or thread writes the shards of `part`; it provides the result of `load_plan`.

    Args:
        folder: is created if it does not exist.
        part: the shards to lock.
        load_plan: called first, while the lock of meta.json is held.

    Raises:
        OutputError: another run writes these shards, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            local(folder).mkdir(parents=True, exist_ok=True)
            with meta_lock(folder):
                plan = load_plan()
                _lock(stack, folder, part)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot write to {folder}: {error}") from error
        yield plan


def require_alone(folder: Path) -> None:
    """Raise OutputError if another run writes shards of this folder."""
    for path in folder.glob(".lock-*-of-*"):
        with locked(path, f"another run is writing to {folder}"):
            pass


def _lock(stack: ExitStack, folder: Path, part: Slice) -> None:
    """Lock this part, and raise OutputError if a part of another job array, which may overlap with it, is locked."""
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
def meta_lock(folder: Path) -> Iterator[None]:
    """A context in which no other process or thread writes meta.json and the index of a folder."""
    with locked(folder / ".lock", f"another run is writing {META} or {INDEX} in {folder}", MOMENT):
        yield


def load_or_create_meta(folder: Path, meta: Meta, rows: int | None = None) -> Meta:
    """The Meta of a folder; in a new folder, `meta` is written and returned. The caller holds `meta_lock`.

    Args:
        folder: exists.
        meta: of this run.
        rows: required rows per shard; None accepts those of the folder.

    Raises:
        OutputError: the folder is of another model or other settings, which the message lists, or has other files.
    """
    remove_parts(folder, rf"\.({META}|{NEXT}|{INDEX})\..*\.part")  # safe, because the caller holds the lock
    existing = read_meta(folder)
    if existing is None:
        if names := sorted(path.name for path in folder.iterdir() if not _is_lock_or_partial(path.name)):
            raise OutputError(f"{folder} is not empty ({', '.join(names[:3])}): name a new folder")
        write_meta(folder, meta)
        return meta
    differences = list(recipe_differences(existing.plan.decided, meta.plan.decided))
    if rows not in (None, existing.plan.rows):
        differences.append(f"rows per shard: {existing.plan.rows} there, {rows} now")
    if differences:
        raise settings_error(folder, differences)
    return existing


def settings_error(folder: Path, differences: Sequence[str]) -> OutputError:
    """The error for a folder with other settings, which lists the differences."""
    listed = "".join(f"\n  {line}" for line in shortened(differences))
    return OutputError(f"{folder} has other settings; name a new folder, or use the same settings:{listed}")


def _is_lock_or_partial(name: str) -> bool:
    return name.startswith(".lock") or (name.startswith(".") and name.endswith(".part"))


def recipe_differences(existing: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[str]:
    """A line per entry in which two recipes, given as `decided` of meta.json, differ."""
    existing, current = {**LEGACY_DEFAULTS, **existing}, {**LEGACY_DEFAULTS, **current}
    for key in sorted({*existing, *current}):
        if existing.get(key) != current.get(key):
            yield f"{key}: {_brief(existing.get(key))} there, {_brief(current.get(key))} now"


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def shard_headers(folder: Path, plan: Plan, part: Slice = Slice()) -> Iterator[tuple[int, Header]]:
    """Numbers and headers of the complete shards of a plan and a part that exist."""
    for name in shards_in(str(folder)):
        number = number_of(name)
        if number not in part or number not in plan.numbers:
            continue
        try:
            header = read_header(str(folder / name), plan)
        except OutputError:
            continue
        yield number, header


def remove_partial_files(folder: Path, part: Slice) -> None:
    """Remove partial files of this part's shards, which killed runs left."""

    def is_in_part(name: str) -> bool:
        number = re.search(r"\d+", name)
        return number is not None and int(number[0]) in part

    remove_parts(folder, r"\.maps-.*\.part", is_in_part)


def missing_shards(meta: Meta, names: Iterable[str]) -> list[int]:
    """Numbers of the shards of all generations that are not among the file names, in ascending order."""
    existing = {number_of(name) for name in names}
    return [number for plan in meta.generations for number in plan.numbers if number not in existing]


def require_complete(subject: str, meta: Meta, names: Iterable[str], partial: bool) -> None:
    """Raise OutputError with the missing files, unless `partial` is true.

    Args:
        subject: beginning of the message, such as "maps is unfinished".
        meta: of the folder.
        names: of the folder's shards.
        partial: whether missing files are allowed.
    """
    missing = [] if partial else missing_shards(meta, names)
    if missing:
        listed = ", ".join(shortened(as_ranges(missing).split(", ")))
        raise OutputError(
            f"{subject}: {len(missing)} of {meta.shards} files are missing ({listed}). Run the featx extract command "
            "again to resume, or featx merge the folders that have these files; or read the existing files with "
            "--partial (in Python, partial=True)"
        )


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges: "0, 3-5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
