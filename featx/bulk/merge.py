"""merge: folders of one extraction, made by jobs that shared no file system, as one folder."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..errors import ArgumentError, OutputError, shortened
from ..whole_files import local, part_name
from .completeness import require_complete
from .folder import Slice, headers, opened, recipe_differences, settle, sweep
from .header import Header
from .index import write_index
from .meta import META, Meta, Plan, read_meta
from .parquet import require_pyarrow
from .shard import shard_name, write_whole


@dataclass(frozen=True, slots=True)
class Merged:
    """What a folder has after others were merged into it.

    shards: files in it. added: those of them that were not there, or are better than what was. missing: numbers of
    shards that no folder has whole. doubled: by number, the folders that have a shard which others have too; the one
    that is taken first. written, failed: images with maps, and without.
    """

    shards: int
    added: int
    missing: tuple[int, ...]
    doubled: dict[int, tuple[Path, ...]]
    written: int
    failed: int


def merge(folders: Iterable[str | Path], out: str | Path, *, partial: bool = False) -> Merged:
    """Join folders that runs with `shard="i/n"` made each for itself; `out` is as one run would have made it.

    out: a new folder, or one of the same extraction, such as one of those given, which is added to. Files are hard
    links where the file system has them, and copies elsewhere; the folders given stay as they are. Of a shard that
    several have, the one is taken in which fewest images failed.

    partial: files may be missing: the same `featx extract` on `out`, or merging again, adds them.

    Raises ArgumentError for no folder, OutputError showing what differs for folders of different recipes or images, for
    one that holds no maps, if no folder has some file and if `out` cannot be written, MissingPackageError without
    pyarrow.
    """
    require_pyarrow()
    given, out = _each_once(folders), local(out)
    facts = _described(given)
    _require_one_extraction(facts)
    first = facts[given[0]].facts
    plan = facts[given[0]].plan
    found = _candidates([*given, out] if out.is_dir() else given, plan)
    require_complete(f"{out} would be unfinished", plan, map(shard_name, found), partial)
    with opened(out, Slice()):
        ids = [id_ for folder in given for _, header in headers(folder, plan) for id_ in _ids(header)]
        settle(out, plan, {**first["recorded"], "merged": [str(folder) for folder in given]}, ids)
        sweep(out, Slice())
        others = [folder for folder in given if not (folder.exists() and folder.samefile(out))]
        found = _candidates([out, *others], plan)
        added = 0
        for number, places in found.items():
            added += _take(places[0][1] / shard_name(number), out)
        write_index(out)
    doubled = {number: tuple(folder for _, folder in places) for number, places in found.items()}
    return Merged(
        len(found),
        added,
        tuple(number for number in range(plan.shards) if number not in found),
        {number: places for number, places in doubled.items() if _are_several(places, number)},
        *_counts(out, plan),
    )


def _each_once(folders: Iterable[str | Path]) -> list[Path]:
    given = list({os.path.realpath(folder): Path(folder) for folder in folders}.values())
    if not given:
        raise ArgumentError("no folders to merge: name those that featx extract --shard made")
    return given


def _described(folders: Sequence[Path]) -> dict[Path, Meta]:
    found = {folder: read_meta(folder) for folder in folders}
    if without := [str(folder) for folder, facts in found.items() if facts is None]:
        raise OutputError(f"no {META} in {', '.join(shortened(without))}: expected folders that featx extract made")
    return {folder: facts for folder, facts in found.items() if facts is not None}


def _require_one_extraction(facts: Mapping[Path, Meta]) -> None:
    """OutputError with all differences if the folders are not of the same recipe, items and shards."""
    first, *others = facts
    lines = [f"{other}: {line}" for other in others for line in _differ(facts[first].plan, facts[other].plan)]
    if lines:
        raise OutputError(
            f"the folders are not of one extraction; {first} is there, each of these now:\n  "
            + "\n  ".join(shortened(lines))
        )


def _differ(there: Plan, now: Plan) -> list[str]:
    lines = list(recipe_differences(there.decided, now.decided))
    if (there.items, there.digest) != (now.items, now.digest):
        lines.append(f"images: {there.items} there, {now.items} now, and not the same ids in the same order")
    if there.rows != now.rows:
        lines.append(f"rows per shard: {there.rows} there, {now.rows} now")
    return lines


def _ids(header: Header) -> list[str]:
    return [*header.ids, *(one.id for one in header.failed)]


def _candidates(folders: Sequence[Path], plan: Plan) -> dict[int, list[tuple[int, Path]]]:
    """By shard how many images failed in it and its folder, for every folder that has it whole, the best first."""
    found: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for folder in folders:
        for number, header in headers(folder, plan):
            found[number].append((len(header.failed), folder))
    return {number: sorted(found[number], key=lambda place: place[0]) for number in sorted(found)}


def _are_several(folders: Sequence[Path], number: int) -> bool:
    """Whether the folders have a shard as more than one file; links to one are one."""
    files = [folder / shard_name(number) for folder in folders]
    return any(not one.samefile(other) for one, other in pairwise(files))


def _take(file: Path, out: Path) -> bool:
    """Have a file in the folder, as a link or else as a copy; whether it was not there."""
    there = out / file.name
    if there.exists() and there.samefile(file):
        return False
    part = out / part_name(file.name)
    try:
        os.link(file, part)
        part.replace(there)
    except OSError:  # another file system, or one without links; what is wrong with it is told by the copy
        part.unlink(missing_ok=True)
        write_whole(out, file.name, lambda part: shutil.copyfile(file, part))
    return True


def _counts(out: Path, plan: Plan) -> tuple[int, int]:
    found = [header for _, header in headers(out, plan)]
    return sum(header.rows for header in found), sum(len(header.failed) for header in found)
