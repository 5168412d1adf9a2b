"""Weights in several files, with an index that says which tensor is in which."""

import json
from pathlib import Path

from ..errors import CheckpointError

INDEX = ".index.json"


def shard_names(index: Path) -> tuple[str, ...]:
    """The files that an index ("model.safetensors.index.json") lists, which lie beside it.

    Raises CheckpointError if it is no index, or lists files elsewhere.
    """
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f'{index}: expected {{"weight_map": {{tensor: file}}}} ({error!r})') from error
    elsewhere = sorted(str(name) for name in files if not isinstance(name, str) or Path(name).name != name)
    if elsewhere or not files:
        raise CheckpointError(f"{index}: expected names of files beside it, got {elsewhere or 'none'}")
    return tuple(sorted(files))
