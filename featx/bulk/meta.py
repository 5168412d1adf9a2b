"""What a folder of maps says of itself in its meta.json: what was asked for, and how it is divided in shards."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from ..errors import OutputError
from ..json_checks import MOST_VALUES, JsonError, Value, parsed, values_in
from ..preprocessing import DataConfig
from .config import DTYPES, Pooling
from .filesystems import joined, read_range, size_of
from .shard import write_whole

FORMAT = 1
META = "meta.json"
NEXT = "next.json"  # what meta.json will be when every shard of a new generation is there
LARGEST = 16 * 2**20  # bytes of it
MOST_SHARDS = 1_000_000  # their names have six digits
LARGEST_BATCH = 2**16
LARGEST_SIDE = 2**20  # pixels of a side, channels
LONGEST_NAME = 1000


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level of the stored maps, and how they were pooled."""

    name: str
    chs: int
    reduction: int
    pooling: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation of a folder's shards, and which items are in which: each has the next `rows` of them.

    decided: what decides the numbers, by name. items, digest: how many there are, and the SHA-256 of their ids.
    first: the number of the first shard. kept: numbers of the shards that count, where it was never finished.
    directory: which relative sources are seen from. column: that of a table or data set which was asked for.
    """

    decided: Mapping[str, Any]
    items: int
    digest: str
    rows: int
    first: int = 0
    kept: tuple[int, ...] | None = None
    directory: str = ""
    column: str | None = None

    @property
    def shards(self) -> int:
        return -(-self.items // self.rows)

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of its shards, in order."""
        return range(self.first, self.first + self.shards) if self.kept is None else self.kept

    @property
    def levels(self) -> tuple[StoredLevel, ...]:
        keys = StoredLevel.__slots__
        return tuple(StoredLevel(*(level[key] for key in keys)) for level in self.decided["levels"])

    @property
    def dtype(self) -> str:
        return self.decided["dtype"]

    @property
    def fingerprint(self) -> str:
        """What every shard's header repeats, so that none of another extraction is taken for one of this."""
        facts = [FORMAT, self.decided, self.items, self.digest, self.rows, *([self.first] if self.first else [])]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def items_of(self, shard: int) -> range:
        start = (shard - self.first) * self.rows
        return range(start, min(start + self.rows, self.items))


@dataclass(frozen=True, slots=True)
class Meta:
    """What a meta.json says.

    generations: the oldest first; an image that several have is as the latest has it. removed: ids of images that have
    rows and are no longer among the inputs. images: how many the inputs are. recorded: what decides no numbers.
    """

    generations: tuple[Plan, ...]
    images: int
    removed: tuple[str, ...] = ()
    recorded: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The first generation, which has the recipe of all."""
        return self.generations[0]

    @property
    def has_grown(self) -> bool:
        return len(self.generations) > 1 or self.plan.kept is not None or bool(self.removed)

    @property
    def batch_size(self) -> int | None:
        return self.recorded.get("batch_size")

    @property
    def shards(self) -> int:
        """How many shards all generations have."""
        return sum(len(plan.numbers) for plan in self.generations)

    def generation_of(self, shard: int) -> Plan | None:
        """The generation that a shard's number is of."""
        for plan in self.generations:
            if plan.first <= shard < plan.first + plan.shards:
                return plan if plan.kept is None or shard in plan.kept else None
        return None


def write_meta(folder: Path, meta: Meta, name: str = META) -> None:
    """Write it, whole or not at all. OutputError if that fails, or it would say more than such a file may."""
    plan, *grown = meta.generations
    if (end := max(one.first + one.shards for one in meta.generations)) > MOST_SHARDS:
        raise OutputError(f"{folder} would have {end} files of maps, more than {MOST_SHARDS}: name a new folder")
    facts = {
        "format": FORMAT,
        "decided": plan.decided,
        **_generation(plan),
        "recorded": meta.recorded,
    }
    if meta.has_grown:
        later = [{"first": one.first, "directory": one.directory, **_generation(one)} for one in grown]
        facts |= {"images": meta.images, "removed": meta.removed, "grown": later}
        facts["grown_fingerprint"] = _fingerprint_of_growth(facts)
    text = json.dumps(facts, indent=None if meta.has_grown else 2) + "\n"
    if len(text) > LARGEST or values_in(text) > MOST_VALUES:
        raise OutputError(
            f"{folder / name} would say more than one file may, with {len(meta.removed)} images that are gone: "
            "name a new folder"
        )
    write_whole(folder, name, lambda part: part.write_text(text, encoding="utf-8"))


def _generation(plan: Plan) -> dict[str, Any]:
    facts = {
        "items": {"count": plan.items, "sha256": plan.digest},
        "rows_per_shard": plan.rows,
        "shards": plan.shards,
        "fingerprint": plan.fingerprint,
    }
    return {**facts, **{key: getattr(plan, key) for key in ("kept", "column") if getattr(plan, key) is not None}}


def read_meta(folder: str | Path, name: str = META) -> Meta | None:
    """What meta.json in a folder or at an address says, None if there is none. OutputError for another format."""
    path = joined(os.fspath(folder), name)
    try:
        size = size_of(path)
        if size > LARGEST:
            raise JsonError(f"it has {size} bytes, more than {LARGEST}")
        return _checked(parsed(read_range(path, 0, size)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, JsonError) as error:
        raise OutputError(f"{path} does not describe an extraction that featx knows: {error}") from error


def require_meta(folder: str | Path) -> Meta:
    """What meta.json in a folder or at an address says; OutputError if there is none."""
    found = read_meta(folder)
    if found is None:
        place = joined(os.fspath(folder), META)
        raise OutputError(f"{place} does not exist: expected a folder that featx extract made")
    return found


def _checked(said: Value) -> Meta:
    if said["format"].number() != FORMAT:
        raise said["format"].mismatch(f"{FORMAT}")
    _require_recipe(said["decided"])
    recorded = said["recorded"]
    if (batch_size := recorded.get("batch_size")) is not None:
        batch_size.number(1, LARGEST_BATCH)
    generations = [_plan(said, said["decided"].object(), 0, recorded.get("directory"))]
    if "grown" not in said.object():
        return Meta(tuple(generations), generations[0].items, (), recorded.object(), said.object())
    for one in said["grown"].each():
        last = generations[-1]
        first = one["first"].number(last.first + last.shards, MOST_SHARDS)
        generations.append(_plan(one, last.decided, first, one["directory"]))
    if said["grown_fingerprint"].text() != _fingerprint_of_growth(said.object()):
        raise JsonError("its generations are not those that were written: it was changed afterwards")
    images, removed = said["images"].number(), tuple(said["removed"].texts())
    return Meta(tuple(generations), images, removed, recorded.object(), said.object())


def _fingerprint_of_growth(facts: Mapping[str, Any]) -> str:
    grown = [facts.get(key) for key in ("images", "removed", "kept", "grown")]
    return sha256(json.dumps(grown, sort_keys=True).encode()).hexdigest()


def _plan(said: Value, decided: Mapping[str, Any], first: int, directory: Value | None) -> Plan:
    items, column, kept = said["items"], said.get("column"), said.get("kept")
    plan = Plan(
        decided,
        items["count"].number(),
        items["sha256"].text(),
        said["rows_per_shard"].number(1),
        first,
        None,
        "" if directory is None else directory.text(),
        None if column is None else column.text(),
    )
    if first + plan.shards > MOST_SHARDS or said["shards"].number() != plan.shards:
        raise said["shards"].mismatch(f"{plan.shards}, and at most {MOST_SHARDS}")
    if said["fingerprint"].text() != plan.fingerprint:
        raise JsonError("its fingerprint is not that of what it says: it was changed after it was written")
    if kept is None:
        return plan
    numbers = tuple(Value(one, kept.path).number(first, first + plan.shards - 1) for one in kept.array())
    if list(numbers) != sorted(set(numbers)):
        raise kept.mismatch("numbers of shards in order, each once")
    return replace(plan, kept=numbers)


def _require_recipe(decided: Value) -> None:
    """Raise JsonError for values that whoever reads maps could not go by."""
    decided["model"].text()
    decided["dtype"].text(DTYPES)
    decided["keep_aspect"].flag()
    if (size := decided.get("size")) is not None:
        size.number(1, LARGEST_SIDE)
    DataConfig.from_json(decided["preprocessing"])
    names = [_level_name(level) for level in decided["levels"].each()]
    if not names or len(set(names)) < len(names):
        raise decided["levels"].mismatch("levels, each once")


def _level_name(level: Value) -> str:
    level["chs"].number(1, LARGEST_SIDE)
    level["reduction"].number(1, LARGEST_SIDE)
    level["pooling"].text(get_args(Pooling))
    name = level["name"].text()
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise level["name"].mismatch("the name of a level")
    return name
