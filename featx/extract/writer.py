"""Maps on disk: safetensors shards, an index that a person can read, and how it all was made.

- `maps-00000.safetensors`, …: one tensor (rows, chs, h, w) per level, named after the level
- `index.csv`: one line per image: where its maps are, or why there are none
- `meta.json`: model, weights, levels, preprocessing, versions
"""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import OutputError
from ..features import Levels
from .batches import Batch

SHARD_BYTES = 256 * 2**20
COLUMNS = ("source", "status", "shard", "row", "width", "height", "reason")


class MapsWriter:
    """Writes batches to a folder: every file in it is whole at every moment, and the index names nothing that is not.

    meta: what `meta.json` says. Leaving the `with` block writes the last shard and the index, also after an error.
    Raises OutputError if the folder holds anything already or cannot be written.
    """

    def __init__(self, folder: str | Path, levels: Levels, meta: dict[str, Any]) -> None:
        self.folder, self.levels = Path(folder), levels
        self.shards: list[Path] = []
        self._lines: list[dict[Any, Any]] = []
        self._waiting: list[Batch] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = sorted(path.name for path in self.folder.iterdir())
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error}") from error
        if held:
            raise OutputError(f"{self.folder} is not empty ({', '.join(held[:3])}): name a new folder")
        self._write("meta.json", lambda part: part.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8"))

    def add(self, batch: Batch) -> None:
        """Take a batch; its maps are written once a shard is full."""
        self._lines += [{"source": path, "status": "failed", "reason": why} for path, why in batch.failed.items()]
        if batch.sources:
            self._waiting.append(batch)
        if sum(maps.nbytes for waiting in self._waiting for maps in waiting.maps) >= SHARD_BYTES:
            self._write_shard()

    def close(self) -> None:
        """Write the last shard and the index."""
        try:
            self._write_shard()
        finally:
            self._write("index.csv", self._save_index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _write_shard(self) -> None:
        batches, self._waiting = self._waiting, []
        if not batches:
            return
        name = f"maps-{len(self.shards):05d}.safetensors"
        columns = zip(*(batch.maps for batch in batches), strict=True)
        tensors = {level.name: torch.cat(maps).contiguous() for level, maps in zip(self.levels, columns, strict=True)}
        sources = [source for batch in batches for source in batch.sources]
        header = {"sources": json.dumps([str(source) for source in sources])}
        self._write(name, lambda part: save_file(tensors, part, header))
        self.shards.append(self.folder / name)
        sizes = [size for batch in batches for size in batch.sizes]
        for row, (source, (width, height)) in enumerate(zip(sources, sizes, strict=True)):
            place = {"shard": name, "row": row, "width": width, "height": height}
            self._lines.append({"source": source, "status": "ok", **place})

    def _save_index(self, part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = csv.DictWriter(file, COLUMNS)
            lines.writeheader()
            lines.writerows(self._lines)

    def _write(self, name: str, save: Callable[[Path], object]) -> None:
        part = self.folder / f".{name}.part"
        try:
            part.touch()
            mode = part.stat().st_mode  # as the user's umask has it; safetensors makes files private
            save(part)
            part.chmod(mode)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self.folder / name)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"cannot write {self.folder / name}: {error}") from error
        finally:
            part.unlink(missing_ok=True)  # there is one only if something went wrong
