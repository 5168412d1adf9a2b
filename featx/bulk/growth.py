"""Generations of a folder: the pending work when its inputs have changed, and which rows are current.

Existing shards never change. New images, and images to extract again, are written to shards of a new generation with
the next numbers. `next.json` describes the new generation while its shards are written, and replaces `meta.json` when
all of them exist, so that an interrupted run leaves the folder in the previous generation.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..whole_files import folder_to_disk
from .header import Header, number_of
from .meta import META, NEXT, Meta, Plan, read_meta, write_meta
from .output_folder import load_or_create_meta, meta_lock, require_alone, settings_error, shard_headers, shards_in
from .sources import Items, Source

RerunSelector = Callable[[Header], Iterable[str]]  # ids of a shard's images to extract again


class ItemSubset(Items):
    """A subset of Items, in the order of `numbers`."""

    def __init__(self, items: Items, numbers: Sequence[int]) -> None:
        vars(self).update(vars(items))
        self._items, self._numbers = items, numbers
        self.ids = [items.ids[number] for number in numbers]

    def _find(self, index: int) -> tuple[Source, int]:
        return self._items._find(self._numbers[index])


@dataclass(frozen=True, slots=True)
class Work:
    """The pending work in a folder.

    Attributes:
        plan: of the generation to extract.
        items: its images.
        before: headers of the shards of earlier generations, without the images that are extracted again.
        removed: number of images that have rows and are no longer among the inputs.
    """

    plan: Plan
    items: Items
    before: Sequence[Header] = ()
    removed: int = 0


def stored_headers(folder: Path, meta: Meta) -> Iterator[Header]:
    """Headers of the complete shards of a folder, in the order of the generations."""
    return (header for plan in meta.generations for _, header in shard_headers(folder, plan))


def latest_rows(headers: Sequence[Header]) -> list[Header]:
    """The headers, each without the images that a later header contains."""
    later: set[str] = set()
    kept: list[Header] = []
    for header in reversed(headers):
        kept.append(header.where(lambda id_: id_ not in later))
        later.update(header.every_id)
    return kept[::-1]


def current_rows(headers: Sequence[Header], meta: Meta) -> list[Header]:
    """The headers with only the latest row of each image, and without removed images."""
    if not meta.has_grown:
        return list(headers)
    removed = set(meta.removed)
    return [header.where(lambda id_: id_ not in removed) for header in latest_rows(headers)]


def load_or_create_plan(
    folder: Path,
    plan: Plan,
    items: Items,
    select_reruns: RerunSelector,
    recorded: Mapping[str, Any],
    rows: int | None,
) -> Work:
    """The pending work of a folder, which is written to the folder for the other jobs of this run.

    The caller holds `meta_lock`.

    Args:
        folder: exists.
        plan: of all items, for a new folder.
        items: all images of the inputs.
        select_reruns: selects the images to extract again.
        recorded: the entry of meta.json.
        rows: required rows per shard; None accepts those of the folder.

    Raises:
        OutputError: the folder has another recipe or no image of the inputs, or another run extracts other images.
    """
    existing = load_or_create_meta(folder, Meta((plan,), plan.items, recorded=recorded), rows)
    pending = read_meta(folder, NEXT)
    is_same = (plan.digest, plan.items) == (existing.plan.digest, existing.plan.items) and not existing.has_grown
    headers = stored_headers(folder, existing)
    if is_same and pending is None and not any(True for header in headers for _ in select_reruns(header)):
        return Work(existing.plan, items)
    if not is_same and plan.column != existing.plan.column:
        raise settings_error(folder, [f"column: {existing.plan.column} there, {plan.column} now"])
    target, work = _next_generation(folder, existing, items, select_reruns, recorded)
    if pending is not None and _image_set(pending) == _image_set(target):
        return replace(work, plan=pending.generations[-1])
    require_alone(folder)
    if pending is not None:  # of other images: keep its finished shards, and drop its missing ones
        pending = replace(pending, recorded=existing.recorded)
        target, work = _next_generation(folder, pending, items, select_reruns, recorded)
    if (target.generations, target.removed) == (existing.generations, existing.removed):
        (folder / NEXT).unlink(missing_ok=True)
        return work
    write_meta(folder, target, NEXT)
    if not len(work.items):
        _commit_generation(folder)
    return work


def commit_if_complete(folder: Path) -> None:
    """Make the pending generation the current one if all of its shards exist."""
    with meta_lock(folder):
        pending = read_meta(folder, NEXT)
        if pending is None:
            return
        existing = {header.number for header in stored_headers(folder, pending)}
        if not existing.issuperset(chain.from_iterable(plan.numbers for plan in pending.generations)):
            return
        _commit_generation(folder)


def _commit_generation(folder: Path) -> None:
    (folder / NEXT).replace(folder / META)
    folder_to_disk(folder)


def _next_generation(
    folder: Path, existing: Meta, items: Items, select_reruns: RerunSelector, recorded: Mapping[str, Any]
) -> tuple[Meta, Work]:
    """The Meta of the folder after these items are extracted, and the work for that."""
    headers = list(stored_headers(folder, existing))
    latest = latest_rows(headers)
    known = set(chain.from_iterable(header.every_id for header in latest))
    reruns = set(chain.from_iterable(map(select_reruns, latest)))
    wanted = set(items.ids)
    if known and known.isdisjoint(wanted):
        raise OutputError(
            f"none of the {len(known)} images of {folder}, such as {min(known)!r}, is among the {len(items)} of the "
            f"inputs, such as {items.ids[0]!r}: name the inputs as before, or a new folder"
        )
    numbers = [number for number, id_ in enumerate(items.ids) if id_ not in known or id_ in reruns]
    removed, pending = tuple(sorted(known - wanted)), ItemSubset(items, numbers)
    complete = {header.number for header in headers}
    generations = [_without_missing_shards(plan, complete) for plan in existing.generations]
    generations[1:] = [plan for plan in generations[1:] if plan.kept != ()]
    last = max([generations[-1].first + generations[-1].shards - 1, *map(number_of, shards_in(str(folder)))])
    count, digest, directory = len(pending), pending.digest(), recorded["directory"]
    plan = replace(existing.plan, items=count, digest=digest, first=last + 1, kept=None, directory=directory)
    if len(pending):
        generations.append(plan)
    later = [*existing.recorded.get("later", ()), {key: recorded[key] for key in recorded if key != "later"}]
    meta = Meta(tuple(generations), len(items), removed, {**existing.recorded, "later": later})
    before = [header.where(lambda id_: id_ in wanted and id_ in known and id_ not in reruns) for header in latest]
    return meta, Work(plan, pending, before, len(removed))


def _without_missing_shards(plan: Plan, complete: set[int]) -> Plan:
    numbers = tuple(number for number in plan.numbers if number in complete)
    return plan if len(numbers) == len(plan.numbers) else replace(plan, kept=numbers)


def _image_set(meta: Meta) -> tuple[int, str, tuple[str, ...]]:
    """What identifies the images of the latest generation, and the removed ones."""
    return meta.generations[-1].items, meta.generations[-1].digest, meta.removed
