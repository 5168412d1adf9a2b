"""Bootstrapped 95 % intervals over images.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 14. Scores that are means over images,
or ratios of sums over images, have percentile intervals. Scores of the spectrum of all vectors (effective rank, CKA)
have normal intervals, because an image that is drawn twice adds no dimension: the replicates are biased, and only their
spread is used.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

REPLICATES = 1000
LEVEL = 0.95
Z = 1.959964  # quantile of the normal distribution at (1 + LEVEL) / 2


@dataclass(frozen=True, slots=True)
class Score:
    """A score and its 95 % interval.

    Attributes:
        value: of all images.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def draws(images: int, replicates: int, seed: int) -> Tensor:
    """Indices (replicates, images) of images drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(images, (replicates, images), generator=generator)


def counts_of(drawn: Tensor) -> Tensor:
    """The number of times that each image was drawn, (replicates, images) in float64."""
    counts = torch.zeros(drawn.shape, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def mean_score(values: Tensor, seed: int) -> Score:
    """The mean of a value per image (n,), with its percentile interval."""
    values = values.double()
    replicates = counts_of(draws(len(values), REPLICATES, seed)) @ values / len(values)
    return percentile_score(values.mean().item(), replicates)


def percentile_score(value: float, replicates: Tensor) -> Score:
    """A score with the percentiles 2.5 and 97.5 of its replicates (replicates,)."""
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Score(value, low, high)


def normal_score(value: float, replicates: Tensor, least: float, most: float) -> Score:
    """A score with an interval of 1.96 standard deviations of its replicates to both sides, within its range."""
    margin = Z * replicates.double().std().item()
    return Score(value, max(least, value - margin), min(most, value + margin))
