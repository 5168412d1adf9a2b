"""Geometry of the vectors of a level: effective rank, and CKA between levels.

Effective rank: Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007).
CKA: Kornblith et al., "Similarity of neural network representations revisited", https://arxiv.org/abs/1905.00414.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .bootstrap import Score, draws, normal_score

MOST_IMAGES = 512  # whose vectors are used, because the time grows with the cube of their number
REPLICATES = 50  # enough for a standard deviation
RESOLUTION = 1e-14  # of eigenvalues in float64, relative to the largest


def effective_rank(matrix: Tensor) -> float:
    """The exponential of the entropy of the singular values, divided by their sum (Roy and Vetterli, 2007).

    Args:
        matrix: (n, chs); it is not centered.

    Returns:
        From 1, for a matrix of rank 1, to min(n, chs), if all singular values are equal; 0 for a matrix of zeros.

    Raises:
        InputError: the matrix has another number of axes, is empty, or holds NaN or infinite values.
    """
    _require_matrix(matrix)
    return float(_rank(torch.linalg.svdvals(matrix.double())))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centered kernel alignment of two representations of the same images (Kornblith et al., 2019).

    Args:
        x: (n, chs), one row per image.
        y: (n, other chs), of the same images in the same order.

    Returns:
        From 0 to 1, where 1 is equality up to rotation, isotropic scale and offset; NaN for vectors that do not vary.

    Raises:
        InputError: the matrices have other shapes, or hold NaN or infinite values.
    """
    for matrix in (x, y):
        _require_matrix(matrix)
    if len(x) != len(y):
        raise InputError(f"CKA compares the same images: got {len(x)} and {len(y)} rows; leave out unpaired ones")
    grams = torch.stack([_gram(x), _gram(y)])
    return float(_alignment(grams)[0, 1])


def rank_score(vectors: Tensor, seed: int) -> Score:
    """The effective rank of centered vectors (n, chs), with its interval."""
    vectors = _drawn(vectors, seed)
    value = effective_rank(vectors - vectors.mean(0))
    rows = draws(len(vectors), REPLICATES, seed)
    replicates = torch.stack([_rank(_singular_values(vectors[row])) for row in rows])
    return normal_score(value, replicates, 0, min(vectors.shape))


def cka_scores(levels: Sequence[Tensor], seed: int) -> list[list[Score]]:
    """Linear CKA of every level with every other, with intervals.

    Args:
        levels: vectors (n, chs) of each level, of the same images in the same order.
        seed: of the draws.

    Returns:
        A row per level.
    """
    grams = torch.stack([_gram(_drawn(vectors, seed)) for vectors in levels])
    values = _alignment(grams)
    rows = draws(grams.shape[1], REPLICATES, seed)
    replicates = torch.stack([_alignment(_centered(grams[:, row][:, :, row])) for row in rows])
    count = len(levels)
    return [[normal_score(values[i, j].item(), replicates[:, i, j], 0, 1) for j in range(count)] for i in range(count)]


def _rank(singular_values: Tensor) -> Tensor:
    total = singular_values.sum()
    return torch.special.entr(singular_values / total).sum().exp() if total > 0 else total


def _singular_values(vectors: Tensor) -> Tensor:
    """Singular values of centered vectors, of their smaller product, which takes less time; zeros below 1e-7."""
    centered = vectors - vectors.mean(0)
    product = centered.T @ centered if centered.shape[1] < len(centered) else centered @ centered.T
    squares = torch.linalg.eigvalsh(product)
    return torch.where(squares > RESOLUTION * squares.max(), squares, 0).sqrt()


def _drawn(vectors: Tensor, seed: int) -> Tensor:
    """At most MOST_IMAGES of the rows, in float64; those of equal seeds are of the same images."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return vectors[order[:MOST_IMAGES].sort().values].double()


def _gram(vectors: Tensor) -> Tensor:
    """Inner products (n, n) of centered vectors (n, chs)."""
    centered = vectors.double() - vectors.double().mean(0)
    return centered @ centered.T


def _centered(grams: Tensor) -> Tensor:
    """Gram matrices (levels, n, n) of vectors, as those of the centered vectors."""
    return grams - grams.mean(1, keepdim=True) - grams.mean(2, keepdim=True) + grams.mean((1, 2), keepdim=True)


def _alignment(grams: Tensor) -> Tensor:
    """CKA (levels, levels) of centered Gram matrices (levels, n, n)."""
    flat = grams.flatten(1)
    products = flat @ flat.T
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms)


def _require_matrix(matrix: Tensor) -> None:
    if matrix.ndim != 2 or not matrix.numel():
        raise InputError(
            f"expected vectors (n, chs), got shape {tuple(matrix.shape)}: pool maps over their cells first"
        )
    if not matrix.isfinite().all():
        raise InputError("the vectors hold NaN or infinite values: are the weights right?")
