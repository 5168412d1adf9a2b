"""The index of an extraction: a Parquet table of its images, built from the headers of the shards only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..whole_files import local
from .growth import latest_rows, stored_headers
from .header import Header
from .meta import Meta, require_meta
from .output_folder import INDEX, meta_lock
from .parquet_reader import cell_text, require_pyarrow
from .shard import shard_name, write_whole

ROWS_PER_GROUP = 2**16


def write_index(folder: str | Path) -> int:
    """Rebuild `index.parquet` of a folder of maps.

    It has a row per image of the existing shards: id, source, shard, row, a column `shape of LEVEL` per level, width
    and height of the original image in pixels, status ("ok", "failed", or "removed" from the inputs), error.

    Args:
        folder: a path.

    Returns:
        The number of images.

    Raises:
        OutputError: the folder has no maps or cannot be written.
        MissingPackageError: pyarrow is not installed.
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

    with meta_lock(folder):
        write_whole(folder, INDEX, save)
    return count


def _with_status(folder: Path, meta: Meta) -> Iterator[tuple[Header, str]]:
    """Headers of the shards, each with the status of its rows."""
    if not meta.has_grown:
        yield from ((header, "ok") for header in stored_headers(folder, meta))
        return
    removed = set(meta.removed)
    for header in latest_rows(list(stored_headers(folder, meta))):
        yield header.where(lambda id_: id_ not in removed), "ok"
        yield header.where(lambda id_: id_ in removed), "removed"


def _columns(header: Header, status: str, levels: list[str]) -> dict[str, list[Any]]:
    failed, rows, name = header.failed, range(header.rows), shard_name(header.number)
    nothing = [None] * len(failed)
    return {
        "id": [cell_text(id_) for id_ in (*header.ids, *(failure.id for failure in failed))],
        "source": [cell_text(source) for source in (*header.sources, *(failure.source for failure in failed))],
        "shard": [*[name] * header.rows, *nothing],
        "row": [*map(header.stored_row, rows), *nothing],
        **{f"shape of {level}": [*(header.shape(level, row) for row in rows), *nothing] for level in levels},
        "width": [*(width for width, _ in header.sizes), *nothing],
        "height": [*(height for _, height in header.sizes), *nothing],
        "status": [status] * header.rows + ["failed" if status == "ok" else status] * len(failed),
        "error": [*[None] * header.rows, *(cell_text(failure.reason) for failure in failed)],
    }
