"""Integrity checks: of the bytes of stored maps, and of changes to the source images."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import OutputError
from .feature_dataset import FeatureDataset
from .filesystems import join
from .header import Header, number_of, read_header
from .meta import require_meta
from .output_folder import require_complete, shards_in
from .shard import KEY, ShardFile, Stamp, digest_of, stamp_of

READ = 8 * 2**20  # bytes at once


@dataclass(slots=True)
class Sources:
    """The state of the source images.

    Attributes:
        same: number of images whose file is unchanged.
        changed: paths of changed files, by the id of the image.
        gone: paths of missing files, by the id of the image.
        unknown: number of images from addresses and saved datasets, which cannot be checked.
    """

    same: int = 0
    changed: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    unknown: int = 0


def check_sources(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Sources:
    """Check whether the source images of a folder have changed, without reading images or maps.

    A file has changed if its size or modification time differs; for images in a tar or a table, those of the tar or the
    table. Relative paths start from the directory in which the first run was started.

    Args:
        folder: a path, or an address that fsspec supports.
        progress: called with the number of finished shards and the number of all shards.
        partial: allow an unfinished folder.

    Returns:
        The state of the images.

    Raises:
        OutputError: the folder has no maps, is unfinished, or a file is damaged.
    """
    dataset, sources = FeatureDataset(folder), Sources()
    require_complete(f"{folder} is unfinished", dataset._meta, dataset._names, partial)
    for done, header in enumerate(dataset._headers, 1):
        for id_, place, stamp in _stamped(header):
            now = None if stamp is None else stamp_of(place)
            if stamp is None:
                sources.unknown += 1
            elif now == stamp:
                sources.same += 1
            else:
                (sources.changed if now else sources.gone)[id_] = place
        progress(done, len(dataset._headers))
    return sources


def changed_ids(header: Header) -> Iterator[str]:
    """Ids of a shard's images whose file has changed; images with a missing file are not included."""
    return (id_ for id_, place, stamp in _stamped(header) if stamp and stamp_of(place) not in (stamp, None))


def _stamped(header: Header) -> Iterator[tuple[str, str, Stamp | None]]:
    """Id, place and stamp of every row."""
    for id_, source, stamp in zip(header.ids, header.sources, header.stamps, strict=True):
        yield id_, os.path.join(header.directory, source), stamp


@dataclass(slots=True)
class Checked:
    """The state of the files in a folder of maps.

    Attributes:
        sound: number of files that match their checksum.
        damaged: reasons, by the path of each file that does not match its checksum or is not a complete shard.
        unknown: number of files of earlier versions, which have no checksum.
    """

    sound: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    unknown: int = 0


def check_files(
    folder: str | Path, progress: Callable[[int, int], object] = lambda *_: None, *, partial: bool = False
) -> Checked:
    """Compare the bytes of all files in a folder of maps with the checksums in their headers.

    Args:
        folder: a path, or an address that fsspec supports.
        progress: called with the number of finished files and the number of all files.
        partial: allow an unfinished folder.

    Returns:
        The state of the files.

    Raises:
        OutputError: the folder has no maps, or is unfinished.
    """
    folder, checked = os.fspath(folder), Checked()
    meta, names = require_meta(folder), shards_in(folder)
    require_complete(f"{folder} is unfinished", meta, names, partial)
    plans = {name: meta.generation_of(number_of(name)) for name in names}
    finished = {name: plan for name, plan in plans.items() if plan is not None}  # of finished generations
    for done, (name, plan) in enumerate(finished.items(), 1):
        path = join(folder, name)
        try:
            header = read_header(path, plan)
            same = header.digest is None or _digest_in(path, header) == header.digest
        except OutputError as error:
            checked.damaged[path] = str(error)
        else:
            if header.digest is None:
                checked.unknown += 1
            elif same:
                checked.sound += 1
            else:
                checked.damaged[path] = f"{path} holds other bytes than were written: its checksum differs"
        progress(done, len(finished))
    return checked


def _digest_in(path: str, header: Header) -> str:
    """The digest computed from the header and the bytes of a file."""
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
