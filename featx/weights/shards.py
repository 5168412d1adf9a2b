"""Weights in several files, with an index that says which tensor is in which."""

import json
from pathlib import Path

from ..errors import CheckpointError, WeightsNotFoundError

INDEX = ".index.json"


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that an index ("model.safetensors.index.json") lists, which lie beside it.

    Raises CheckpointError if it is no index, or lists files elsewhere.
    """
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f'{index}: expected {{"weight_map": {{tensor: file}}}} ({error!r})') from error
    elsewhere = sorted(str(name) for name in files if not isinstance(name, str) or not _is_beside(name))
    if elsewhere or not files:
        raise CheckpointError(f"{index}: expected names of files beside it, got {elsewhere or 'none'}")
    return tuple(sorted(files))


def local_shards(index: Path) -> tuple[Path, ...]:
    """The files of weights that an index on this machine lists.

    Raises WeightsNotFoundError naming all that are not there, CheckpointError as `shard_names` does.
    """
    shards = tuple(index.parent / name for name in shard_names(index))
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise WeightsNotFoundError(f"{index} lists files that are not beside it: {missing}")
    return shards


def _is_beside(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..") and "\\" not in name and name.isprintable()
