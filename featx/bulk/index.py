"""The table of an extraction's images, made of the shards' headers alone, so that it cannot say anything else."""

from pathlib import Path
from typing import Any

from ..whole_files import local
from .folder import INDEX, described, headers
from .header import Header
from .meta import require_meta
from .parquet import cell_text, require_pyarrow
from .shard import shard_name, write_whole

ROWS_PER_GROUP = 2**16


def write_index(folder: str | Path) -> int:
    """Write `index.parquet` of a folder of maps anew; how many images it names.

    A row per image of the shards that are there: id, source, shard, row, one column `shape of LEVEL` per level, width
    and height of the picture in pixels, status ("ok" or "failed"), error. Images whose shard is not there yet are not
    in it. Raises OutputError if the folder is none of maps or cannot be written, MissingPackageError without pyarrow.
    """
    folder = local(folder)
    pyarrow, parquet = require_pyarrow()
    plan = require_meta(folder).plan
    levels = [level.name for level in plan.levels]
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
            for shard, header in headers(folder, plan):
                waiting.append(pyarrow.table(_columns(header, shard_name(shard), levels), schema))
                count += waiting[-1].num_rows
                if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
                    writer.write_table(pyarrow.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pyarrow.concat_tables(waiting))

    with described(folder):
        write_whole(folder, INDEX, save)
    return count


def _columns(header: Header, name: str, levels: list[str]) -> dict[str, list[Any]]:
    failed, rows = header.failed, range(header.rows)
    nothing = [None] * len(failed)
    return {
        "id": [cell_text(id_) for id_ in (*header.ids, *(one.id for one in failed))],
        "source": [cell_text(source) for source in (*header.sources, *(one.source for one in failed))],
        "shard": [*[name] * header.rows, *nothing],
        "row": [*rows, *nothing],
        **{f"shape of {level}": [*(header.shape(level, row) for row in rows), *nothing] for level in levels},
        "width": [*(width for width, _ in header.sizes), *nothing],
        "height": [*(height for _, height in header.sizes), *nothing],
        "status": ["ok"] * header.rows + ["failed"] * len(failed),
        "error": [*[None] * header.rows, *(cell_text(one.reason) for one in failed)],
    }
