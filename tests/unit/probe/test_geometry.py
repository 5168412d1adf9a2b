"""Effective rank and CKA agree with their definitions, and their intervals with known spreads."""

import math

import pytest
import torch
from torch import Tensor

from featx import InputError
from featx.probe import Score, effective_rank, linear_cka
from featx.probe.bootstrap import mean_score, normal_score, percentile_score
from featx.probe.geometry import _singular_values, cka_scores, rank_score

EXACT = 1e-9  # float64


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(side: int) -> Tensor:
    return torch.linalg.qr(matrix(side, side, seed=9)).Q


def test_the_effective_rank_of_an_identity_is_its_side():
    assert effective_rank(torch.eye(7)) == pytest.approx(7, abs=EXACT)


def test_the_effective_rank_of_an_outer_product_is_1():
    assert effective_rank(matrix(20, 1) @ matrix(1, 30)) == pytest.approx(1, abs=1e-9)


def test_the_effective_rank_of_zeros_is_0():
    assert effective_rank(torch.zeros(3, 4)) == 0


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    values = [4.0, 2.0, 1.0, 1.0]
    entropy = -sum(value / 8 * math.log(value / 8) for value in values)
    assert effective_rank(torch.diag(torch.tensor(values))) == pytest.approx(math.exp(entropy), abs=EXACT)


def test_the_effective_rank_does_not_change_under_rotation_and_scale():
    x = matrix(12, 8)
    assert effective_rank(3 * rotation(12) @ x @ rotation(8)) == pytest.approx(effective_rank(x), abs=EXACT)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_singular_values_of_the_smaller_product_are_those_of_the_centered_matrix(shape):
    x = matrix(*shape)
    expected = torch.linalg.svdvals(x - x.mean(0))
    # 1e-7: square roots of eigenvalues, which are resolved to 1e-14
    torch.testing.assert_close(_singular_values(x).flip(0), expected, rtol=0, atol=1e-6)


def test_the_rank_of_a_level_is_that_of_its_centered_vectors():
    x = matrix(40, 6) + 100
    score = rank_score(x, 0)
    assert score.value == pytest.approx(effective_rank(x - x.mean(0)), abs=EXACT)
    assert score.low < score.value < score.high


def cka_by_features(x: Tensor, y: Tensor) -> float:
    """Equation 5 and its simplification in Kornblith et al. (2019)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())).item()


def test_cka_is_that_of_the_paper():
    x, y = matrix(20, 5), matrix(20, 9, seed=1)
    assert linear_cka(x, y) == pytest.approx(cka_by_features(x, y), abs=EXACT)


def test_cka_is_1_under_rotation_scale_and_offset():
    x = matrix(20, 6)
    assert linear_cka(x, 5 * x @ rotation(6) + 3) == pytest.approx(1, abs=EXACT)


def test_cka_of_orthogonal_representations_is_0():
    basis = torch.linalg.qr(torch.cat([torch.ones(12, 1, dtype=torch.float64), matrix(12, 6)], 1)).Q[:, 1:]
    assert linear_cka(basis[:, :3], basis[:, 3:]) == pytest.approx(0, abs=EXACT)


def test_cka_of_levels_is_a_symmetric_matrix_with_intervals():
    levels = [matrix(30, 5), matrix(30, 7, seed=1)]
    scores = cka_scores(levels, 0)
    assert scores[0][1].value == pytest.approx(cka_by_features(*levels), abs=EXACT)
    assert scores[0][1].value == pytest.approx(scores[1][0].value, abs=EXACT)
    assert scores[0][1].low < scores[0][1].value < scores[0][1].high
    assert [scores[i][i].value for i in (0, 1)] == pytest.approx([1, 1], abs=EXACT)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: effective_rank(torch.zeros(2, 3, 4)), r"got shape \(2, 3, 4\): pool maps over their cells first"),
        (lambda: effective_rank(torch.full((2, 2), math.nan)), "NaN or infinite values: are the weights right"),
        (lambda: linear_cka(torch.ones(3, 2), torch.ones(4, 2)), "got 3 and 4 rows; leave out unpaired ones"),
    ],
)
def test_other_matrices_are_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_the_interval_of_a_mean_is_1_96_standard_errors_wide():
    values = (matrix(400) > 0.5).double()
    score = mean_score(values, 0)
    margin = 1.96 * values.std(correction=0).item() / 20
    assert score.value == values.mean().item()
    # a tenth: percentiles of 1000 replicates, and steps of 1/400
    assert [score.value - score.low, score.high - score.value] == pytest.approx([margin, margin], rel=0.1)


def test_scores_keep_the_ends_of_their_range():
    assert normal_score(0.9, torch.tensor([0.5, 1.0]), 0, 1).high == 1
    assert percentile_score(1.0, torch.ones(10)) == Score(1, 1, 1)
    assert str(Score(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
