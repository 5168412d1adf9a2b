"""Whether image files are still those that maps were made of, by their size and the time of their last change."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .completeness import require_complete
from .dataset import FeatureDataset
from .header import Header
from .shard import Stamp, stamp_of


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
