"""Generations of a folder: what is left to extract when its inputs are others now, and which rows count.

What is extracted stays as it is. Images that are new, and those that are to be done again, get shards of a generation
of their own, whose numbers go on. `next.json` says what it is while these are written, and becomes `meta.json` when all
are there, so that a folder is of the generation before or of the new one, wherever a run ends.
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
from .output_folder import begun, described, differing, headers, require_alone, shards_in
from .sources import Items, Source

Again = Callable[[Header], Iterable[str]]  # ids of a shard's images that are to be done again


class Chosen(Items):
    """Some of the images of others, in the order of their numbers."""

    def __init__(self, items: Items, numbers: Sequence[int]) -> None:
        vars(self).update(vars(items))
        self._items, self._numbers = items, numbers
        self.ids = [items.ids[number] for number in numbers]

    def _find(self, index: int) -> tuple[Source, int]:
        return self._items._find(self._numbers[index])


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do in a folder: the plan of it, and its images.

    before: headers of the shards of earlier generations, with those of their images that are not done again. removed:
    how many images have rows and are no longer among the inputs.
    """

    plan: Plan
    items: Items
    before: Sequence[Header] = ()
    removed: int = 0


def stored(folder: Path, meta: Meta) -> Iterator[Header]:
    """Headers of the shards of a folder that are there and whole, those of later generations last."""
    return (header for plan in meta.generations for _, header in headers(folder, plan))


def latest(found: Sequence[Header]) -> list[Header]:
    """Headers without the images that a later one of them has, too."""
    seen: set[str] = set()
    kept: list[Header] = []
    for header in reversed(found):
        kept.append(header.where(lambda id_: id_ not in seen))
        seen.update(header.every_id)
    return kept[::-1]


def current(found: Sequence[Header], meta: Meta) -> list[Header]:
    """Headers of all shards of a folder, with the images alone that count: as they are latest, and not removed."""
    removed = set(meta.removed)
    return [header.where(lambda id_: id_ not in removed) for header in latest(found)] if meta.has_grown else list(found)


def settle(folder: Path, plan: Plan, items: Items, again: Again, recorded: Mapping[str, Any], rows: int | None) -> Work:
    """What is left to do in a folder, of which it then speaks, so that other jobs of this run do their part of it.

    Called where nobody else describes the folder. plan: of all items, as a new folder has it. again: which images are
    done again. rows: asked for, of a shard. Raises OutputError if the folder is of another recipe, if it shares no
    image with the items, or if another run extracts other images into it.
    """
    there = begun(folder, Meta((plan,), plan.items, recorded=recorded), rows)
    pending = read_meta(folder, NEXT)
    is_same = (plan.digest, plan.items) == (there.plan.digest, there.plan.items) and not there.has_grown
    if is_same and pending is None and not any(True for header in stored(folder, there) for _ in again(header)):
        return Work(there.plan, items)
    if not is_same and plan.column != there.plan.column:
        raise differing(folder, [f"column: {there.plan.column} there, {plan.column} now"])
    wanted, work = _grown(folder, there, items, again, recorded)
    if pending is not None and _images(pending) == _images(wanted):
        return replace(work, plan=pending.generations[-1])
    require_alone(folder)
    if pending is not None:  # of other images: what there is of it counts, and the rest is not awaited
        wanted, work = _grown(folder, replace(pending, recorded=there.recorded), items, again, recorded)
    if (wanted.generations, wanted.removed) == (there.generations, there.removed):
        (folder / NEXT).unlink(missing_ok=True)
        return work
    write_meta(folder, wanted, NEXT)
    if not len(work.items):
        _begin(folder)
    return work


def finish(folder: Path) -> None:
    """Have the folder be of its new generation, if all shards of that are there."""
    with described(folder):
        pending = read_meta(folder, NEXT)
        if pending is None:
            return
        there = {header.number for header in stored(folder, pending)}
        if not there.issuperset(chain.from_iterable(plan.numbers for plan in pending.generations)):
            return
        _begin(folder)


def _begin(folder: Path) -> None:
    """Have the folder be of the generation that is written down as the next one."""
    (folder / NEXT).replace(folder / META)
    folder_to_disk(folder)


def _grown(folder: Path, there: Meta, items: Items, again: Again, recorded: Mapping[str, Any]) -> tuple[Meta, Work]:
    """What a folder is to say of itself when it has these images, and the work until then."""
    found = list(stored(folder, there))
    shown = latest(found)
    known = set(chain.from_iterable(header.every_id for header in shown))
    redo = set(chain.from_iterable(map(again, shown)))
    now = set(items.ids)
    if known and known.isdisjoint(now):
        raise OutputError(
            f"none of the {len(known)} images of {folder}, such as {min(known)!r}, is among the {len(items)} of the "
            f"inputs, such as {items.ids[0]!r}: name the inputs as before, or a new folder"
        )
    numbers = [number for number, id_ in enumerate(items.ids) if id_ not in known or id_ in redo]
    removed, todo = tuple(sorted(known - now)), Chosen(items, numbers)
    whole = {header.number for header in found}
    generations = [_closed(plan, whole) for plan in there.generations]
    generations[1:] = [plan for plan in generations[1:] if plan.kept != ()]
    last = max([generations[-1].first + generations[-1].shards - 1, *map(number_of, shards_in(str(folder)))])
    plan = replace(
        there.plan, items=len(todo), digest=todo.digest(), first=last + 1, kept=None, directory=recorded["directory"]
    )
    if len(todo):
        generations.append(plan)
    later = [*there.recorded.get("later", ()), {key: recorded[key] for key in recorded if key != "later"}]
    meta = Meta(tuple(generations), len(items), removed, {**there.recorded, "later": later})
    before = [header.where(lambda id_: id_ in now and id_ in known and id_ not in redo) for header in shown]
    return meta, Work(plan, todo, before, len(removed))


def _closed(plan: Plan, whole: set[int]) -> Plan:
    """The generation as it is, without the shards that are not there."""
    numbers = tuple(number for number in plan.numbers if number in whole)
    return plan if len(numbers) == len(plan.numbers) else replace(plan, kept=numbers)


def _images(meta: Meta) -> tuple[int, str, tuple[str, ...]]:
    """Which images the latest generation is of, and which are left out."""
    return meta.generations[-1].items, meta.generations[-1].digest, meta.removed
