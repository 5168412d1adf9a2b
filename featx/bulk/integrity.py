"""Whether stored maps have the bytes that were written, and the image files that they were made of are unchanged."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import OutputError
from .feature_dataset import FeatureDataset
from .filesystems import joined
from .header import Header, number_of, read_header
from .meta import require_meta
from .output_folder import require_complete, shards_in
from .shard import KEY, ShardFile, Stamp, digest_of, stamp_of

READ = 8 * 2**20  # bytes at once


@dataclass(slots=True)
class Sources:
    """What became of the files that maps were made of.

    same: images whose file is as it was. changed, gone: where the file was by the image's id, if it is another one now,
    or not there. unknown: images of which that cannot be told: from addresses, and from saved data sets.
    """

    same: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    unknown: int = 0


def check_sources(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Sources:
    """Look for the files that a folder's maps were made of; none of them is read, and no map.

    A file is another one if its size differs or the time of its last change; of an image in a tar or a table these are
    the tar's or the table's. Paths that are relative are looked for from where the folder was begun. progress: called
    with the shards done and all there are. partial: the folder may be unfinished. Raises OutputError if the folder is
    none of maps or unfinished, or one is damaged.
    """
    dataset, found = FeatureDataset(folder), Sources()
    require_complete(f"{folder} is unfinished", dataset._meta, dataset._names, partial)
    for done, header in enumerate(dataset._headers, 1):
        for id_, place, stamp in _stamped(header):
            now = None if stamp is None else stamp_of(place)
            if stamp is None:
                found.unknown += 1
            elif now == stamp:
                found.same += 1
            else:
                (found.changed if now else found.gone)[id_] = place
        progress(done, len(dataset._headers))
    return found


def changed_ids(header: Header) -> Iterator[str]:
    """Images of a shard whose file is another one now; none whose file is gone counts."""
    return (id_ for id_, place, stamp in _stamped(header) if stamp and stamp_of(place) not in (stamp, None))


def _stamped(header: Header) -> Iterator[tuple[str, str, Stamp | None]]:
    """Id, place and stamp of every row."""
    for id_, source, stamp in zip(header.ids, header.sources, header.stamps, strict=True):
        yield id_, os.path.join(header.directory, source), stamp


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
