"""Weights in several files, with an index that says which tensor is in which."""

import os
from pathlib import Path

from ..errors import CheckpointError, WeightsNotFoundError, names_in, shortened
from .hub_config import brief, read_json

INDEX = ".index.json"
MOST_SHARDS, LONGEST_NAME = 1000, 255  # of files, and bytes of their names


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that an index ("model.safetensors.index.json") lists, which lie beside it.

    Raises CheckpointError if it is no index, or lists files elsewhere.
    """
    held = read_json(index)
    table = held.get("weight_map") if isinstance(held, dict) else None
    if not isinstance(table, dict):
        raise CheckpointError(f'{index}: expected {{"weight_map": {{tensor: file}}}}, got {brief(held)}')
    listed = list(table.values())
    elsewhere = [brief(name) for name in listed if not isinstance(name, str) or not _is_beside(name)]
    if elsewhere or not listed:
        raise CheckpointError(
            f"{index}: expected names of files beside it, got {', '.join(shortened(elsewhere)) or 'none'}"
        )
    files = sorted({*listed})
    if len(files) > MOST_SHARDS:
        raise CheckpointError(f"{index}: lists {len(files)} files, more than the {MOST_SHARDS} of any network")
    return tuple(files)


def local_shards(index: Path) -> tuple[Path, ...]:
    """The files of weights that an index on this machine lists.

    Raises WeightsNotFoundError naming all that are not there, CheckpointError as `shard_names` does.
    """
    shards = tuple(index.parent / name for name in shard_names(index))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsNotFoundError(f"{index} lists files that are not beside it: [{names_in(missing)}]")
    return shards


def _is_beside(name: str) -> bool:
    plain = Path(name).name == name and name not in ("", ".", "..") and "\\" not in name and name.isprintable()
    return plain and len(os.fsencode(name)) <= LONGEST_NAME
