"""Which stored vectors are alike: exactly, a block of rows after another, so that memory does not grow with them.

Similarities are computed in float64 and rounded to float32, so that equal vectors are equally similar wherever they
are stored. A vector of zeros has the cosine 0 with all others. A vector that holds NaN or infinite values, which
extraction never writes, is similar to none.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from ..arguments import fits, require_number
from ..errors import ArgumentError
from .arrays import blocks, level_of, require_vectors, rows

if TYPE_CHECKING:
    from .feature_dataset import FeatureDataset

Metric = Literal["cosine", "dot"]
TILE = 1024  # rows of a block that are compared with as many others at once
MARGIN = 2.0**-22  # of a product of unit vectors in float32 per component: what it may be off, and more


class Neighbour(NamedTuple):
    """An image, and how similar its vector is."""

    id: str
    similarity: float


class Duplicate(NamedTuple):
    """Two images, in their order, and the cosine of their vectors."""

    first: str
    second: str
    similarity: float


def nearest(
    dataset: "FeatureDataset",
    query: str | Tensor | np.ndarray | Sequence[float],
    k: int,
    level: str | None,
    metric: Metric,
) -> list[Neighbour]:
    """See `FeatureDataset.nearest`."""
    if metric not in get_args(Metric):
        raise ArgumentError(f"metric={metric!r}: choose one of {get_args(Metric)}")
    require_number(k, "k", 1)
    level = level_of(dataset, level)
    require_vectors(dataset, [level])
    own, vector = _query(dataset, query, level)
    if metric == "cosine":
        vector = _unit(vector[None])[0]
    best, places = np.empty(0, np.float32), np.empty(0, np.int64)
    for first, block in blocks(dataset, level):
        exact = (_unit(block) if metric == "cosine" else block.astype(np.float64)) @ vector
        row = np.flatnonzero(np.isfinite(exact) & (np.arange(first, first + len(block)) != own))
        with np.errstate(over="ignore"):
            best = np.concatenate([best, exact[row].astype(np.float32)])
        places = np.concatenate([places, row + first])
        order = np.argsort(-best, kind="stable")[:k]  # of equals, the earlier row first
        best, places = best[order], places[order]
    ids = dataset.ids
    return [Neighbour(ids[place], float(one)) for place, one in zip(places, best, strict=True)]


def duplicates(dataset: "FeatureDataset", threshold: float, level: str | None) -> Iterator[Duplicate]:
    """See `FeatureDataset.duplicates`."""
    if not fits(threshold, float) or not 0 < threshold <= 1:
        raise ArgumentError(f"threshold={threshold!r}: expected the least cosine, above 0 and at most 1")
    level = level_of(dataset, level)
    require_vectors(dataset, [level])
    return _pairs(dataset, threshold, level)


def _pairs(dataset: "FeatureDataset", threshold: float, level: str) -> Iterator[Duplicate]:
    ids = dataset.ids
    for first in range(0, len(dataset), TILE):
        vectors = _tile(dataset, level, first)
        for second in range(first, len(dataset), TILE):
            others = vectors if first == second else _tile(dataset, level, second)
            for one, other, similarity in _near(vectors, others, threshold, first == second):
                yield Duplicate(ids[first + one], ids[second + other], similarity)


def _near(vectors: np.ndarray, others: np.ndarray, threshold: float, same: bool) -> Iterator[tuple[int, int, float]]:
    """Rows of unit vectors and others with at least that cosine, which float32 finds and float64 decides.

    same: both are the same rows: each pair is given once, and none of a row with itself.
    """
    near = vectors.astype(np.float32) @ others.astype(np.float32).T
    rows_, columns = np.nonzero(near >= threshold - MARGIN * vectors.shape[1])
    if same:
        rows_, columns = rows_[columns > rows_], columns[columns > rows_]
    for start in range(0, len(rows_), TILE):
        one, other = rows_[start : start + TILE], columns[start : start + TILE]
        exact = np.einsum("ij,ij->i", vectors[one], others[other]).astype(np.float32)
        held = exact >= np.float32(threshold)
        yield from zip(one[held].tolist(), other[held].tolist(), exact[held].tolist(), strict=True)


def _tile(dataset: "FeatureDataset", level: str, first: int) -> np.ndarray:
    """Unit vectors of the rows from `first` on."""
    return _unit(rows(dataset, level, first, min(first + TILE, len(dataset))))


def _query(dataset: "FeatureDataset", query: Any, level: str) -> tuple[int, np.ndarray]:
    """The row that the query is of, -1 if it is none, and its vector."""
    if isinstance(query, str):
        own = dataset.row_of(query)
        return own, rows(dataset, level, own, own + 1)[0].astype(np.float64)
    given = query.detach().cpu().double().numpy() if isinstance(query, Tensor) else query
    try:
        vector = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"expected an id or a vector of numbers, got {type(query).__name__}: {error}") from error
    chs = next(one.chs for one in dataset._meta.plan.levels if one.name == level)
    if vector.shape != (chs,):
        raise ArgumentError(f"expected a vector ({chs},) for level {level}, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ArgumentError("expected a vector of finite numbers, got one with NaN or infinite values")
    return -1, vector


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, chs) divided by their lengths, in float64; rows of zeros stay, rows with infinities are NaN."""
    numbers = vectors.astype(np.float64)
    numbers[~np.isfinite(numbers).all(1)] = np.nan
    lengths = np.linalg.norm(numbers, axis=1, keepdims=True)
    return np.divide(numbers, lengths, out=numbers, where=lengths != 0)
