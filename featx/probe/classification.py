"""Accuracy of nearest neighbors and of a linear probe on one vector per image, in stratified cross-validation.

Every image is predicted once, by classifiers that were fitted without the images of its fold, so that accuracies are
means over all images. The classifiers are scikit-learn's.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import MissingPackageError

MOST_ITERATIONS = 1000


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold (n,) of each image. The images of a class are spread evenly over the folds, in random order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    assigned = torch.empty_like(labels)
    assigned[by_class] = torch.arange(len(labels)) % folds
    return assigned


def knn_correct(vectors: Tensor, labels: Tensor, folds: Tensor, neighbors: int) -> Tensor:
    """Whether the nearest neighbors of each image by cosine, among the images of other folds, give its class, (n,)."""
    require_sklearn()
    from sklearn.neighbors import KNeighborsClassifier

    return cross_validated(KNeighborsClassifier(neighbors, metric="cosine"), vectors, labels, folds) == labels


def linear_correct(vectors: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """Whether logistic regression on the images of other folds gives the class of each image, (n,)."""
    return linear_classes(vectors, labels, folds) == labels


def linear_classes(vectors: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """The class (n,) of each vector, by logistic regression on the standardized vectors of other folds."""
    require_sklearn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    return cross_validated(classifier, vectors, labels, folds)


def cross_validated(classifier: Any, vectors: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """The class (n,) of each vector, by a classifier that is fitted to the vectors of other folds.

    Args:
        classifier: an estimator of scikit-learn.
        vectors: (n, chs).
        labels: (n,).
        folds: (n,).
    """
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    inputs, truth = vectors.float().numpy(), labels.numpy()
    return torch.from_numpy(cross_val_predict(classifier, inputs, truth, cv=PredefinedSplit(folds.numpy())))


def require_sklearn() -> None:
    """Raise MissingPackageError if scikit-learn is not installed."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("probes need the package scikit-learn: pip install 'featx[probe]'") from error
