"""The table of an extraction's images, made of the shards' headers alone, so that it cannot say anything else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..whole_files import local
from .growth import latest, stored
from .header import Header
from .meta import Meta, require_meta
from .output_folder import INDEX, described
from .parquet_reader import cell_text, require_pyarrow
from .shard import shard_name, write_whole

ROWS_PER_GROUP = 2**16


def write_index(folder: str | Path) -> int:
    """Write `index.parquet` of a folder of maps anew; how many images it names.

    A row per image of the shards that are there: id, source, shard, row, one column `shape of LEVEL` per level, width
    and height of the picture in pixels, status ("ok", "failed", or "removed" from the inputs), error. Images whose
    shard is not there yet are not in it. Raises OutputError if the folder is none of maps or cannot be written,
    MissingPackageError without pyarrow.
    """
    folder = local(folder)
    pyarrow, parquet = require_pyarrow()
    meta = require_meta(folder)
    levels = [level.name for level in meta.plan.levels]
    text, number = pyarrow.string(), pyarrow.int32()
    schema = pyarrow.schema(
        [
            *[("id", text), ("source", text), ("shard", text), ("row", number)],
            *[(f"shape of {level}", pyarrow.list_(number)) for level in levels],
            *[("width", number), ("height", number), ("status", text), ("error", text)],
        ]
    )
    count = 0

    def save(part: Path) -> None:
        nonlocal count
        waiting = []
        with part.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
            for header, status in _with_status(folder, require_meta(folder)):
                waiting.append(pyarrow.table(_columns(header, status, levels), schema))
                count += waiting[-1].num_rows
                if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                    writer.write_table(pyarrow.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pyarrow.concat_tables(waiting))

    with described(folder):
        write_whole(folder, INDEX, save)
    return count


def _with_status(folder: Path, meta: Meta) -> Iterator[tuple[Header, str]]:
    """Headers of the shards, each with what its rows are."""
    if not meta.has_grown:
        yield from ((header, "ok") for header in stored(folder, meta))
        return
    removed = set(meta.removed)
    for header in latest(list(stored(folder, meta))):
        yield header.where(lambda id_: id_ not in removed), "ok"
        yield header.where(lambda id_: id_ in removed), "removed"


def _columns(header: Header, status: str, levels: list[str]) -> dict[str, list[Any]]:
    failed, rows, name = header.failed, range(header.rows), shard_name(header.number)
    nothing = [None] * len(failed)
    return {
        "id": [cell_text(id_) for id_ in (*header.ids, *(one.id for one in failed))],
        "source": [cell_text(source) for source in (*header.sources, *(one.source for one in failed))],
        "shard": [*[name] * header.rows, *nothing],
        "row": [*map(header.stored_row, rows), *nothing],
        **{f"shape of {level}": [*(header.shape(level, row) for row in rows), *nothing] for level in levels},
        "width": [*(width for width, _ in header.sizes), *nothing],
        "height": [*(height for _, height in header.sizes), *nothing],
        "status": [status] * header.rows + ["failed" if status == "ok" else status] * len(failed),
        "error": [*[None] * header.rows, *(cell_text(one.reason) for one in failed)],
    }
