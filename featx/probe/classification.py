"""Accuracy of nearest neighbors and of a linear probe on one vector per image, in stratified cross-validation.

Every image is predicted once, by classifiers that were fitted without the images of its fold, so that accuracies are
means over all images.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear import fit_linear

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # of training vectors, their labels and vectors: classes


def stratified_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold (n,) of each image. The images of a class are spread evenly over the folds, in random order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    assigned = torch.empty_like(labels)
    assigned[by_class] = torch.arange(len(labels)) % folds
    return assigned


def cross_validated(vectors: Tensor, labels: Tensor, folds: Tensor, predict: Predict) -> Tensor:
    """Whether each image is classified correctly, (n,).

    Args:
        vectors: (n, chs).
        labels: (n,).
        folds: of each image, (n,).
        predict: fits to training vectors and their labels, and classifies other vectors.
    """
    predicted = torch.empty_like(labels)
    for fold in folds.unique().tolist():
        test = folds == fold
        predicted[test] = predict(vectors[~test], labels[~test], vectors[test])
    return predicted == labels


def nearest_classes(train: Tensor, train_labels: Tensor, vectors: Tensor, *, neighbors: int) -> Tensor:
    """The most common class (n,) among the nearest training vectors by cosine; of equally common ones, the first.

    This is scikit-learn's KNeighborsClassifier(neighbors, metric="cosine").
    """
    cosines = F.normalize(vectors, dim=1) @ F.normalize(train, dim=1).T
    nearest = train_labels[cosines.topk(neighbors, dim=1).indices]
    return F.one_hot(nearest).sum(1).argmax(1)


def linear_classes(train: Tensor, train_labels: Tensor, vectors: Tensor) -> Tensor:
    """The classes (n,) that logistic regression on standardized vectors predicts."""
    return fit_linear(train, train_labels, int(train_labels.max()) + 1).predict(vectors)


def knn_correct(vectors: Tensor, labels: Tensor, folds: Tensor, neighbors: int) -> Tensor:
    """Whether the nearest neighbors of each image in other folds give its class, (n,)."""
    return cross_validated(vectors.double(), labels, folds, partial(nearest_classes, neighbors=neighbors))


def linear_correct(vectors: Tensor, labels: Tensor, folds: Tensor) -> Tensor:
    """Whether logistic regression on the images of other folds gives the class of each image, (n,)."""
    return cross_validated(vectors.double(), labels, folds, linear_classes)
