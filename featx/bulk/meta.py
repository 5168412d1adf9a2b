"""What a folder of maps says of itself in its meta.json: what was asked for, and how it is divided in shards."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from ..errors import OutputError
from ..json_checks import JsonError, Value, parsed
from ..preprocessing import DataConfig
from .recipe import DTYPES, Pooling
from .shard import write_whole
from .systems import joined, read_range, size_of

FORMAT = 1
META = "meta.json"
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
    """Which items are in which shard: shard i has items [i * rows, (i + 1) * rows).

    decided: what decides the numbers, by name. items, digest: how many there are, and the SHA-256 of their ids.
    """

    decided: Mapping[str, Any]
    items: int
    digest: str
    rows: int

    @property
    def shards(self) -> int:
        return -(-self.items // self.rows)

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
        facts = [FORMAT, self.decided, self.items, self.digest, self.rows]
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def items_of(self, shard: int) -> range:
        return range(shard * self.rows, min((shard + 1) * self.rows, self.items))


@dataclass(frozen=True, slots=True)
class Meta:
    """What a meta.json says.

    facts: all of it, as JSON has it. directory: where the run was begun that relative sources are seen from.
    """

    facts: dict[str, Any]
    plan: Plan
    directory: str
    batch_size: int | None


def write_meta(folder: Path, plan: Plan, recorded: Mapping[str, Any]) -> None:
    facts = {
        "format": FORMAT,
        "decided": plan.decided,
        "items": {"count": plan.items, "sha256": plan.digest},
        "rows_per_shard": plan.rows,
        "shards": plan.shards,
        "fingerprint": plan.fingerprint,
        "recorded": recorded,
    }
    text = json.dumps(facts, indent=2) + "\n"
    write_whole(folder, META, lambda part: part.write_text(text, encoding="utf-8"))


def read_meta(folder: str | Path) -> Meta | None:
    """What meta.json in a folder or at an address says, None if there is none. OutputError for another format."""
    path = joined(os.fspath(folder), META)
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
    items = said["items"]
    plan = Plan(
        said["decided"].object(),
        items["count"].number(),
        items["sha256"].text(),
        said["rows_per_shard"].number(1),
    )
    if plan.shards > MOST_SHARDS or said["shards"].number() != plan.shards:
        raise said["shards"].mismatch(f"{plan.shards}, and at most {MOST_SHARDS}")
    if said["fingerprint"].text() != plan.fingerprint:
        raise JsonError("its fingerprint is not that of what it says: it was changed after it was written")
    directory, batch_size = said["recorded"].get("directory"), said["recorded"].get("batch_size")
    return Meta(
        said.object(),
        plan,
        "" if directory is None else directory.text(),
        None if batch_size is None else batch_size.number(1, LARGEST_BATCH),
    )


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
