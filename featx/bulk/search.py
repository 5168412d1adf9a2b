"""Exact nearest-neighbor and duplicate search over stored vectors, in blocks of rows, with constant memory use.

Similarities are computed in float64 and rounded to float32, so that equal vectors have equal similarities at every
position. A vector of zeros has the cosine 0 with all others. Vectors with NaN or infinite values, which extraction
never writes, are ignored.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from ..arguments import fits, require_number
from ..errors import ArgumentError
from .arrays import read_blocks, read_rows, require_vectors, resolve_level

if TYPE_CHECKING:
    from .feature_dataset import FeatureDataset

Metric = Literal["cosine", "dot"]
TILE = 1024  # rows per block; blocks are compared pairwise
MARGIN = 2.0**-22  # upper bound of the error per component of a product of unit vectors in float32


class Neighbor(NamedTuple):
    """An image and the similarity of its vector to the query."""

    id: str
    similarity: float


class Duplicate(NamedTuple):
    """Two images, in the order of the dataset, and the cosine of their vectors."""

    first: str
    second: str
    similarity: float


def nearest(
    dataset: "FeatureDataset",
    query: str | Tensor | np.ndarray | Sequence[float],
    k: int,
    level: str | None,
    metric: Metric,
) -> list[Neighbor]:
    """The most similar images, the most similar first; implements `FeatureDataset.nearest`."""
    if metric not in get_args(Metric):
        raise ArgumentError(f"metric={metric!r}: choose one of {get_args(Metric)}")
    require_number(k, "k", 1)
    level = resolve_level(dataset, level)
    require_vectors(dataset, [level])
    query_row, vector = _query(dataset, query, level)
    if metric == "cosine":
        vector = _unit(vector[None])[0]
    best, places = np.empty(0, np.float32), np.empty(0, np.int64)
    for first, block in read_blocks(dataset, level):
        exact = (_unit(block) if metric == "cosine" else block.astype(np.float64)) @ vector
        row = np.flatnonzero(np.isfinite(exact) & (np.arange(first, first + len(block)) != query_row))
        with np.errstate(over="ignore"):
            best = np.concatenate([best, exact[row].astype(np.float32)])
        places = np.concatenate([places, row + first])
        order = np.argsort(-best, kind="stable")[:k]  # equal similarities: the earlier row first
        best, places = best[order], places[order]
    ids = dataset.ids
    return [Neighbor(ids[place], float(similarity)) for place, similarity in zip(places, best, strict=True)]


def duplicates(dataset: "FeatureDataset", threshold: float, level: str | None) -> Iterator[Duplicate]:
    """Pairs of similar images; implements `FeatureDataset.duplicates`."""
    if not fits(threshold, float) or not 0 < threshold <= 1:
        raise ArgumentError(f"threshold={threshold!r}: expected the least cosine, above 0 and at most 1")
    level = resolve_level(dataset, level)
    require_vectors(dataset, [level])
    return _pairs(dataset, threshold, level)


def _pairs(dataset: "FeatureDataset", threshold: float, level: str) -> Iterator[Duplicate]:
    ids = dataset.ids
    for first in range(0, len(dataset), TILE):
        vectors = _tile(dataset, level, first)
        for second in range(first, len(dataset), TILE):
            others = vectors if first == second else _tile(dataset, level, second)
            for one, other, similarity in _similar_pairs(vectors, others, threshold, first == second):
                yield Duplicate(ids[first + one], ids[second + other], similarity)


def _similar_pairs(
    vectors: np.ndarray, others: np.ndarray, threshold: float, same: bool
) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows of unit vectors with a cosine of at least `threshold`: float32 selects candidates, float64 decides.

    If `same` is true, both arrays are the same rows: each pair is yielded once, without pairs of a row with itself.
    """
    near = vectors.astype(np.float32) @ others.astype(np.float32).T
    rows_, columns = np.nonzero(near >= threshold - MARGIN * vectors.shape[1])
    if same:
        rows_, columns = rows_[columns > rows_], columns[columns > rows_]
    for start in range(0, len(rows_), TILE):
        one, other = rows_[start : start + TILE], columns[start : start + TILE]
        exact = np.einsum("ij,ij->i", vectors[one], others[other]).astype(np.float32)
        keep = exact >= np.float32(threshold)
        yield from zip(one[keep].tolist(), other[keep].tolist(), exact[keep].tolist(), strict=True)


def _tile(dataset: "FeatureDataset", level: str, first: int) -> np.ndarray:
    """Unit vectors of up to TILE rows, starting with row `first`."""
    return _unit(read_rows(dataset, level, first, min(first + TILE, len(dataset))))


def _query(dataset: "FeatureDataset", query: Any, level: str) -> tuple[int, np.ndarray]:
    """The row of a query by id, or -1 for a vector, and the query's vector."""
    if isinstance(query, str):
        row = dataset.row_of(query)
        return row, read_rows(dataset, level, row, row + 1)[0].astype(np.float64)
    values = query.detach().cpu().double().numpy() if isinstance(query, Tensor) else query
    try:
        vector = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"expected an id or a vector of numbers, got {type(query).__name__}: {error}") from error
    chs = next(stored.chs for stored in dataset._meta.plan.levels if stored.name == level)
    if vector.shape != (chs,):
        raise ArgumentError(f"expected a vector ({chs},) for level {level}, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ArgumentError("expected a vector of finite numbers, got one with NaN or infinite values")
    return -1, vector


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, chs) divided by their norms, in float64; zero rows are unchanged, rows that are not finite are NaN."""
    numbers = vectors.astype(np.float64)
    numbers[~np.isfinite(numbers).all(1)] = np.nan
    lengths = np.linalg.norm(numbers, axis=1, keepdims=True)
    return np.divide(numbers, lengths, out=numbers, where=lengths != 0)
