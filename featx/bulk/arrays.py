"""Conversion of the rows of a FeatureDataset to NumPy arrays, as a whole or in blocks, and to pandas."""

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import ArgumentError, MissingPackageError, shortened

if TYPE_CHECKING:
    from .feature_dataset import FeatureDataset

BLOCK_BYTES = 8 * 2**20  # of a block of rows, approximately


def resolve_level(dataset: "FeatureDataset", level: str | None) -> str:
    """The level, or the only one for None; ArgumentError if None is ambiguous or the dataset lacks the level."""
    if level is None and len(dataset.levels) == 1:
        return dataset.levels[0]
    if level not in dataset.levels:
        raise ArgumentError(f"level={level!r}: choose among {dataset.levels}")
    return level


def common_shape(dataset: "FeatureDataset", level: str) -> tuple[int, ...]:
    """The shape of the rows of a level; ArgumentError if the rows have several shapes, or there are no rows."""
    shapes = {header.shape(level, row) for header in dataset._headers for row in range(header.rows)}
    if len(shapes) > 1:
        raise ArgumentError(
            f"level {level} of {dataset.folder} has maps of {len(shapes)} shapes, such as "
            f"{', '.join(shortened(sorted(shapes), 3))}, which do not fit into one array: read them one by one, as "
            "dataset[i]"
        )
    if not shapes:
        raise ArgumentError(f"{dataset.folder} has no image that was extracted")
    return shapes.pop()


def read_rows(dataset: "FeatureDataset", level: str, first: int, last: int) -> np.ndarray:
    """Rows `first` to `last` (exclusive), which have one shape; adjacent rows of a file are read at once."""
    parts: list[np.ndarray] = []
    while first < last:
        shard = bisect_right(dataset._starts, first) - 1
        start, end = dataset._starts[shard], min(last, dataset._starts[shard + 1])
        block = _read_shard_rows(dataset, shard, level, range(first - start, end - start))
        parts.append((block.float() if block.dtype == torch.bfloat16 else block).numpy())
        first = end
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _read_shard_rows(dataset: "FeatureDataset", shard: int, level: str, wanted: range) -> torch.Tensor:
    """Rows of one shard; its file may have further rows between them, of images removed or extracted again."""
    header, file = dataset._headers[shard], dataset._file(shard)
    stored = [header.stored_row(row) for row in wanted]
    spans = [header.span(level, row) for row in wanted]
    if level not in header.tensors:  # each row is a separate tensor in the file
        return torch.stack([torch.frombuffer(file.read(p.start, p.end), dtype=p.dtype).reshape(p.shape) for p in spans])
    content = file.read(spans[0].start, spans[-1].end)
    block = torch.frombuffer(content, dtype=spans[0].dtype).reshape(-1, *spans[0].shape)
    return block if len(block) == len(stored) else block[torch.tensor(stored) - stored[0]]


def read_blocks(dataset: "FeatureDataset", level: str) -> Iterator[tuple[int, np.ndarray]]:
    """All rows of a level in blocks of about BLOCK_BYTES, each with the index of its first row."""
    step = max(1, BLOCK_BYTES // (4 * int(np.prod(common_shape(dataset, level)))))
    for first in range(0, len(dataset), step):
        yield first, read_rows(dataset, level, first, min(first + step, len(dataset)))


def to_numpy(dataset: "FeatureDataset", level: str | None) -> np.ndarray:
    """All rows of a level as one array (images, ...); implements `FeatureDataset.to_numpy`."""
    level = resolve_level(dataset, level)
    array: np.ndarray | None = None
    for first, block in read_blocks(dataset, level):
        if array is None:
            array = np.empty((len(dataset), *block.shape[1:]), block.dtype)
        array[first : first + len(block)] = block
    assert array is not None
    return array


def to_pandas(dataset: "FeatureDataset") -> Any:
    """A DataFrame of all rows; implements `FeatureDataset.to_pandas`."""
    try:
        import pandas
    except ImportError as error:
        raise MissingPackageError("a DataFrame needs pandas: pip install 'featx[pandas]'") from error
    require_vectors(dataset, dataset.levels)
    sizes = [size for header in dataset._headers for size in header.sizes]
    columns: dict[str, Any] = {"id": dataset.ids}
    columns |= {name: [size[axis] for size in sizes] for axis, name in enumerate(("width", "height"))}
    if reserved := [level for level in dataset.levels if level in columns]:
        raise ArgumentError(f"level {reserved[0]!r} has the name of a column beside it: leave it out with levels=[...]")
    return pandas.DataFrame(columns | {level: [*to_numpy(dataset, level)] for level in dataset.levels})


def require_vectors(dataset: "FeatureDataset", levels: list[str]) -> None:
    """Raise ArgumentError with the names of the levels that hold maps."""
    pooling = {level.name: level.pooling for level in dataset._meta.plan.levels}
    if maps := [level for level in levels if pooling[level] == "none"]:
        raise ArgumentError(
            f"levels {maps} of {dataset.folder} hold maps, and vectors are expected: choose levels that were pooled, "
            "or extract again with pooling='mean'"
        )
