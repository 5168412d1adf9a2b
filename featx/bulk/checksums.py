"""Whether the bytes of stored maps are still those that were written, by the checksum in every file's header."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import OutputError
from .completeness import require_complete
from .folder import shards_in
from .header import Header, number_of, read_header
from .meta import require_meta
from .shard import KEY, digest_of
from .shard_file import ShardFile
from .systems import joined

READ = 8 * 2**20  # bytes at once


@dataclass(slots=True)
class Checked:
    """What became of the files of a folder of maps.

    sound: files whose bytes have their checksum. damaged: by path, files that have another one, or are not whole files
    of maps, and why. unknown: files without a checksum, which earlier versions wrote.
    """

    sound: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unknown: int = 0


def check_files(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Checked:
    """Compare every byte of a folder of maps, or of one at an address, with the checksums in the files' headers.

    Args:
        folder: a path, or an address that fsspec knows.
        progress: called with the files done and all there are.
        partial: the folder may be unfinished.

    Raises:
        OutputError: the folder is none of maps, or unfinished.
    """
    folder, found = os.fspath(folder), Checked()
    meta, names = require_meta(folder), shards_in(folder)
    require_complete(f"{folder} is unfinished", meta, names, partial)
    plans = {name: meta.generation_of(number_of(name)) for name in names}
    of = {name: plan for name, plan in plans.items() if plan is not None}  # the others are of no finished generation
    for done, (name, plan) in enumerate(of.items(), 1):
        path = joined(folder, name)
        try:
            header = read_header(path, plan)
            same = header.digest is None or _digest_in(path, header) == header.digest
        except OutputError as error:
            found.damaged[path] = str(error)
        else:
            if header.digest is None:
                found.unknown += 1
            elif same:
                found.sound += 1
            else:
                found.damaged[path] = f"{path} holds other bytes than were written: its checksum differs"
        progress(done, len(of))
    return found


def _digest_in(path: str, header: Header) -> str:
    """The digest that the file at a path should have, of what it says and of its bytes."""
    file = ShardFile(path, header.version)
    length = int.from_bytes(file.read(0, 8), "little")
    facts = json.loads(json.loads(file.read(8, 8 + length))["__metadata__"][KEY])
    del facts["digest"]
    digest = digest_of(facts, {name: place.shape for name, place in header.tensors.items()})
    start, end = 8 + length, file.nbytes
    for first in range(start, end, READ):
        digest.update(file.read(first, min(first + READ, end)))
    file.close()
    return digest.hexdigest()
