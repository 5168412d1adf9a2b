"""The meta.json of an output folder: the settings of the extraction, and its division into shards."""

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
from .filesystems import join, read_range, size_of
from .shard import write_whole

FORMAT = 1
META = "meta.json"
NEXT = "next.json"  # the next meta.json, until all shards of a new generation exist
LARGEST = 16 * 2**20  # bytes of meta.json
MOST_SHARDS = 1_000_000  # file names have six digits
LARGEST_BATCH = 2**16
LARGEST_SIDE = 2**20  # pixels per side, or channels
LONGEST_NAME = 1000


@dataclass(frozen=True, slots=True)
class StoredLevel:
    """A level of the stored maps, and its pooling."""

    name: str
    chs: int
    reduction: int
    pooling: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A generation of shards, each of which contains the next `rows` items.

    Attributes:
        decided: what determines the stored values; see `result_identity`.
        items: number of items.
        digest: SHA-256 of the ids of the items.
        rows: items per shard.
        first: number of the first shard.
        kept: numbers of the existing shards, if the generation was never finished.
        directory: where relative sources start.
        column: the requested column of a table or dataset.
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
        """The numbers of the shards, in order."""
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
        """Identifies the plan in the header of every shard, so that shards of other extractions are rejected."""
        facts = [FORMAT, self.decided, self.items, self.digest, self.rows, *([self.first] if self.first else [])]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def items_of(self, shard: int) -> range:
        start = (shard - self.first) * self.rows
        return range(start, min(start + self.rows, self.items))


@dataclass(frozen=True, slots=True)
class Meta:
    """The content of a meta.json.

    Attributes:
        generations: the oldest first; if several contain an image, its latest row is used.
        images: number of images of the inputs.
        removed: ids of images that have rows and are no longer among the inputs.
        recorded: information that does not affect the stored values.
        facts: the JSON object.
    """

    generations: tuple[Plan, ...]
    images: int
    removed: tuple[str, ...] = ()
    recorded: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The first generation; all generations share its recipe."""
        return self.generations[0]

    @property
    def has_grown(self) -> bool:
        return len(self.generations) > 1 or self.plan.kept is not None or bool(self.removed)

    @property
    def batch_size(self) -> int | None:
        return self.recorded.get("batch_size")

    @property
    def shards(self) -> int:
        """Number of shards of all generations."""
        return sum(len(plan.numbers) for plan in self.generations)

    def generation_of(self, shard: int) -> Plan | None:
        """The generation that contains a shard; None if there is none."""
        for plan in self.generations:
            if plan.first <= shard < plan.first + plan.shards:
                return plan if plan.kept is None or shard in plan.kept else None
        return None


# Entries of a folder that has grown; one alone means that others were lost.
GROWN = {"images", "removed", "kept", "grown", "grown_fingerprint"}


def write_meta(folder: Path, meta: Meta, name: str = META) -> None:
    """Write meta.json atomically; OutputError if that fails, or if the file would be too large."""
    plan, *grown = meta.generations
    if (end := max(generation.first + generation.shards for generation in meta.generations)) > MOST_SHARDS:
        raise OutputError(f"{folder} would have {end} files of maps, more than {MOST_SHARDS}: name a new folder")
    facts = {
        "format": FORMAT,
        "decided": plan.decided,
        **_generation(plan),
        "recorded": meta.recorded,
    }
    if meta.has_grown:
        later = [{"first": plan.first, "directory": plan.directory, **_generation(plan)} for plan in grown]
        facts |= {"images": meta.images, "removed": meta.removed, "grown": later}
        facts["grown_fingerprint"] = _fingerprint_of_growth(facts)
    text = json.dumps(facts, indent=None if meta.has_grown else 2) + "\n"
    if len(text) > LARGEST or values_in(text) > MOST_VALUES:
        raise OutputError(
            f"{folder / name} would be too large, with {len(meta.removed)} images that were removed: name a new folder"
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
    """The Meta of a folder or an address; None if it has no meta.json, OutputError if that is invalid."""
    path = join(os.fspath(folder), name)
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
    """The Meta of a folder or an address; OutputError if it has no valid meta.json."""
    meta = read_meta(folder)
    if meta is None:
        place = join(os.fspath(folder), META)
        raise OutputError(f"{place} does not exist: expected a folder that featx extract made")
    return meta


def _checked(facts: Value) -> Meta:
    if facts["format"].number() != FORMAT:
        raise facts["format"].mismatch(f"{FORMAT}")
    _require_recipe(facts["decided"])
    recorded = facts["recorded"]
    if (batch_size := recorded.get("batch_size")) is not None:
        batch_size.number(1, LARGEST_BATCH)
    generations = [_plan(facts, facts["decided"].object(), 0, recorded.get("directory"))]
    if not GROWN & facts.object().keys():
        return Meta(tuple(generations), generations[0].items, (), recorded.object(), facts.object())
    for generation in facts["grown"].each():
        last = generations[-1]
        first = generation["first"].number(last.first + last.shards, MOST_SHARDS)
        generations.append(_plan(generation, last.decided, first, generation["directory"]))
    if facts["grown_fingerprint"].text() != _fingerprint_of_growth(facts.object()):
        raise JsonError("its generations are not those that were written: it was changed afterwards")
    images, removed = facts["images"].number(), tuple(facts["removed"].texts())
    return Meta(tuple(generations), images, removed, recorded.object(), facts.object())


def _fingerprint_of_growth(facts: Mapping[str, Any]) -> str:
    grown = [facts.get(key) for key in ("images", "removed", "kept", "grown")]
    return sha256(json.dumps(grown, sort_keys=True).encode()).hexdigest()


def _plan(facts: Value, decided: Mapping[str, Any], first: int, directory: Value | None) -> Plan:
    items, column, kept = facts["items"], facts.get("column"), facts.get("kept")
    plan = Plan(
        decided,
        items["count"].number(),
        items["sha256"].text(),
        facts["rows_per_shard"].number(1),
        first,
        None,
        "" if directory is None else directory.text(),
        None if column is None else column.text(),
    )
    if first + plan.shards > MOST_SHARDS or facts["shards"].number() != plan.shards:
        raise facts["shards"].mismatch(f"{plan.shards}, and at most {MOST_SHARDS}")
    if facts["fingerprint"].text() != plan.fingerprint:
        raise JsonError("its fingerprint does not match its content: it was changed after it was written")
    if kept is None:
        return plan
    numbers = tuple(Value(number, kept.path).number(first, first + plan.shards - 1) for number in kept.array())
    if list(numbers) != sorted(set(numbers)):
        raise kept.mismatch("numbers of shards in order, each once")
    return replace(plan, kept=numbers)


def _require_recipe(decided: Value) -> None:
    """Raise JsonError for invalid values of entries that readers of maps need."""
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
