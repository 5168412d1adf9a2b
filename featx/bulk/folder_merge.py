"""The function `merge`, which joins the output folders of jobs without a shared file system."""

import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..errors import ArgumentError, OutputError, shortened
from ..whole_files import local, part_name
from .growth import current_rows, stored_headers
from .index import write_index
from .meta import META, NEXT, Meta, read_meta
from .output_folder import (
    Slice,
    exclusive_lock,
    load_or_create_meta,
    recipe_differences,
    remove_partial_files,
    require_complete,
)
from .parquet_reader import require_pyarrow
from .shard import shard_name, write_whole


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of a merge.

    Attributes:
        shards: files in the folder.
        added: files that are new, or replace a file with more failed images.
        missing: numbers of the shards that are complete in no folder.
        doubled: by number, the folders that contain a shard which several folders have; the first one's was taken.
        written: images with maps.
        failed: images that failed.
    """

    shards: int
    added: int
    missing: tuple[int, ...]
    doubled: dict[int, tuple[Path, ...]]
    written: int
    failed: int


def merge(folders: Iterable[str | Path], out: str | Path, *, partial: bool = False) -> Merged:
    """Join the folders that runs with `shard="i/n"` wrote; `out` equals the folder of a single run.

    Files are hard links if the file system supports them, and copies otherwise; the source folders do not change. If
    several folders have a shard, the one with the fewest failed images is taken.

    Args:
        folders: of one extraction.
        out: a new folder, or one of the same extraction to add to, such as one of `folders`.
        partial: allow missing files; `featx extract` on `out`, or another merge, can add them later.

    Raises:
        ArgumentError: there are no folders.
        OutputError: the folders differ in recipe or images (the message lists the differences), one has no maps, files
            are missing from all of them, or `out` cannot be written.
        MissingPackageError: pyarrow is not installed.
    """
    require_pyarrow()
    sources, out = _distinct(folders), local(out)
    metas = _read_metas(sources)
    _require_one_extraction(metas)
    meta = metas[sources[0]]
    candidates = _candidates([*sources, out] if out.is_dir() else sources, meta)
    require_complete(f"{out} would be unfinished", meta, map(shard_name, candidates), partial)
    recorded = {**meta.recorded, "merged": [str(folder) for folder in sources]}
    with exclusive_lock(out, Slice(), lambda: load_or_create_meta(out, replace(meta, recorded=recorded))) as out_meta:
        _require_one_extraction({sources[0]: meta, out: out_meta})
        remove_partial_files(out, Slice())
        others = [folder for folder in sources if not (folder.exists() and folder.samefile(out))]
        candidates = _candidates([out, *others], meta)
        added = 0
        for number, places in candidates.items():
            added += _link_or_copy(places[0][1] / shard_name(number), out)
        write_index(out)
    doubled = {number: tuple(folder for _, folder in places) for number, places in candidates.items()}
    return Merged(
        len(candidates),
        added,
        tuple(number for plan in meta.generations for number in plan.numbers if number not in candidates),
        {number: places for number, places in doubled.items() if _are_several(places, number)},
        *_counts(out, meta),
    )


def _distinct(folders: Iterable[str | Path]) -> list[Path]:
    distinct = list({os.path.realpath(folder): Path(folder) for folder in folders}.values())
    if not distinct:
        raise ArgumentError("no folders to merge: name those that featx extract --shard made")
    return distinct


def _read_metas(folders: Sequence[Path]) -> dict[Path, Meta]:
    metas = {folder: read_meta(folder) for folder in folders}
    if without := [str(folder) for folder, meta in metas.items() if meta is None]:
        raise OutputError(f"no {META} in {', '.join(shortened(without))}: expected folders that featx extract made")
    return {folder: meta for folder, meta in metas.items() if meta is not None}


def _require_one_extraction(metas: Mapping[Path, Meta]) -> None:
    """Raise OutputError with all differences if the folders differ in recipe, items or shards."""
    first, *others = metas
    lines = [f"{other}: {line}" for other in others for line in _differences(metas[first], metas[other])]
    if lines:
        raise OutputError(
            f"the folders are not of one extraction; {first} is there, each of these now:\n  "
            + "\n  ".join(shortened(lines))
        )
    if growing := [str(folder) for folder in metas if read_meta(folder, NEXT) is not None]:
        raise OutputError(
            f"images are being added to {', '.join(shortened(growing))}: run the same featx extract again there, which "
            "resumes, and merge when it is done"
        )


def _differences(first: Meta, second: Meta) -> list[str]:
    lines = list(recipe_differences(first.plan.decided, second.plan.decided))
    if _image_sets(first) != _image_sets(second):
        lines.append(f"images: {first.images} there, {second.images} now, and not the same ids in the same order")
    if first.plan.rows != second.plan.rows:
        lines.append(f"rows per shard: {first.plan.rows} there, {second.plan.rows} now")
    return lines


def _image_sets(meta: Meta) -> tuple[object, ...]:
    return meta.removed, *((plan.first, plan.items, plan.digest, plan.kept) for plan in meta.generations)


def _candidates(folders: Sequence[Path], meta: Meta) -> dict[int, list[tuple[int, Path]]]:
    """For every shard, (failed images, folder) of each folder that has it complete, the fewest failures first."""
    candidates: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for folder in folders:
        for header in stored_headers(folder, meta):
            candidates[header.number].append((len(header.failed), folder))
    return {number: sorted(candidates[number], key=lambda place: place[0]) for number in sorted(candidates)}


def _are_several(folders: Sequence[Path], number: int) -> bool:
    """Whether the folders have different files for a shard, rather than hard links to one."""
    files = [folder / shard_name(number) for folder in folders]
    return any(not file.samefile(other) for file, other in pairwise(files))


def _link_or_copy(file: Path, out: Path) -> bool:
    """Put a hard link to the file, or else a copy, into the folder; False if it was there already."""
    target = out / file.name
    if target.exists() and target.samefile(file):
        return False
    part = out / part_name(file.name)
    try:
        os.link(file, part)
        part.replace(target)
    except OSError:  # another file system, or one without links; the copy reports other problems
        part.unlink(missing_ok=True)
        write_whole(out, file.name, lambda part: shutil.copyfile(file, part))
    return True


def _counts(out: Path, meta: Meta) -> tuple[int, int]:
    headers = current_rows(list(stored_headers(out, meta)), meta)
    return sum(header.rows for header in headers), sum(len(header.failed) for header in headers)
