"""merge: folders of one extraction, made by jobs that shared no file system, as one folder."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..errors import ArgumentError, OutputError, shortened
from ..whole_files import local, part_name
from .growth import current, stored
from .index import write_index
from .meta import META, NEXT, Meta, read_meta
from .output_folder import Slice, begun, opened, recipe_differences, require_complete, sweep
from .parquet_reader import require_pyarrow
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
    meta = facts[given[0]]
    found = _candidates([*given, out] if out.is_dir() else given, meta)
    require_complete(f"{out} would be unfinished", meta, map(shard_name, found), partial)
    recorded = {**meta.recorded, "merged": [str(folder) for folder in given]}
    with opened(out, Slice(), lambda: begun(out, replace(meta, recorded=recorded))) as there:
        _require_one_extraction({given[0]: meta, out: there})
        sweep(out, Slice())
        others = [folder for folder in given if not (folder.exists() and folder.samefile(out))]
        found = _candidates([out, *others], meta)
        added = 0
        for number, places in found.items():
            added += _take(places[0][1] / shard_name(number), out)
        write_index(out)
    doubled = {number: tuple(folder for _, folder in places) for number, places in found.items()}
    return Merged(
        len(found),
        added,
        tuple(number for plan in meta.generations for number in plan.numbers if number not in found),
        {number: places for number, places in doubled.items() if _are_several(places, number)},
        *_counts(out, meta),
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
    lines = [f"{other}: {line}" for other in others for line in _differ(facts[first], facts[other])]
    if lines:
        raise OutputError(
            f"the folders are not of one extraction; {first} is there, each of these now:\n  "
            + "\n  ".join(shortened(lines))
        )
    if growing := [str(folder) for folder in facts if read_meta(folder, NEXT) is not None]:
        raise OutputError(
            f"images are being added to {', '.join(shortened(growing))}: run the same featx extract again there, which "
            "resumes, and merge when it is done"
        )


def _differ(there: Meta, now: Meta) -> list[str]:
    lines = list(recipe_differences(there.plan.decided, now.plan.decided))
    if _images(there) != _images(now):
        lines.append(f"images: {there.images} there, {now.images} now, and not the same ids in the same order")
    if there.plan.rows != now.plan.rows:
        lines.append(f"rows per shard: {there.plan.rows} there, {now.plan.rows} now")
    return lines


def _images(meta: Meta) -> tuple[object, ...]:
    return meta.removed, *((plan.first, plan.items, plan.digest, plan.kept) for plan in meta.generations)


def _candidates(folders: Sequence[Path], meta: Meta) -> dict[int, list[tuple[int, Path]]]:
    """By shard how many images failed in it and its folder, for every folder that has it whole, the best first."""
    found: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for folder in folders:
        for header in stored(folder, meta):
            found[header.number].append((len(header.failed), folder))
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


def _counts(out: Path, meta: Meta) -> tuple[int, int]:
    found = current(list(stored(out, meta)), meta)
    return sum(header.rows for header in found), sum(len(header.failed) for header in found)
