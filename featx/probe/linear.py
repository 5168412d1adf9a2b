"""Logistic regression on standardized vectors: the linear probe.

It minimizes the objective of scikit-learn's LogisticRegression behind a StandardScaler, with its default strength of
regularization: C times the sum of cross-entropies, plus half the squared norm of the weights; the bias is not
regularized.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTH = 1.0  # C of scikit-learn, the inverse of the regularization
MOST_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """A linear classifier of standardized vectors.

    Attributes:
        mean: of each channel, (chs,).
        scale: standard deviation of each channel, (chs,); 1 for a constant channel.
        weight: (classes, chs).
        bias: (classes,).
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, vectors: Tensor) -> Tensor:
        """The most probable class (n,) of vectors (n, chs)."""
        return F.linear((vectors - self.mean) / self.scale, self.weight, self.bias).argmax(1)


def fit_linear(vectors: Tensor, labels: Tensor, classes: int) -> LinearClassifier:
    """Fit multinomial logistic regression with L-BFGS.

    Args:
        vectors: (n, chs), in the dtype to compute in.
        labels: class of each vector, (n,), from 0 to classes - 1.
        classes: number of classes; one without a vector is never predicted before the others.

    Returns:
        The classifier.
    """
    mean, spread = vectors.mean(0), vectors.std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1)
    inputs = (vectors - mean) / scale
    weight = vectors.new_zeros(classes, vectors.shape[1], requires_grad=True)
    bias = vectors.new_zeros(classes, requires_grad=True)
    penalty = 1 / (2 * STRENGTH * len(vectors))  # the objective is divided by n, so that tolerances fit every n
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(F.linear(inputs, weight, bias), labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearClassifier(mean, scale, weight.detach(), bias.detach())
