"""kNN and logistic regression agree with SciPy's distances and optimizer; folds are stratified."""

import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from featx import MissingPackageError
from featx.probe.classification import knn_correct, linear_classes, linear_correct, stratified_folds


def clusters(per_class: int, classes: int, chs: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors around a random center per class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    centers = torch.randn(classes, chs, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), chs, generator=generator, dtype=torch.float64)
    return centers[labels] + spread * noise, labels


@pytest.mark.parametrize("neighbors", [1, 4, 5])
def test_nearest_classes_are_the_modes_of_labels_by_cosine_distance(neighbors):
    vectors, labels = clusters(20, 4, 6, 1.5)
    folds = (torch.arange(80) >= 60).long()
    order = scipy.spatial.distance.cdist(vectors[60:], vectors[:60], "cosine").argsort(1, kind="stable")
    modes = scipy.stats.mode(labels.numpy()[order[:, :neighbors]], axis=1).mode  # the smallest of equally common ones
    assert knn_correct(vectors, labels, folds, neighbors)[60:].tolist() == (modes == labels[60:].numpy()).tolist()


def test_linear_classes_are_those_of_the_minimum_of_the_regularized_cross_entropy():
    vectors, labels = clusters(24, 3, 4, 1.2)
    folds = (torch.arange(72) >= 36).long()
    train = vectors[:36].numpy()
    mean, deviation = train.mean(0), train.std(0)
    inputs, rows = (train - mean) / deviation, np.arange(36)

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:12].reshape(3, 4), flat[12:]
        logits = inputs @ weight.T + bias
        return (scipy.special.logsumexp(logits, 1) - logits[rows, labels[:36]]).sum() + 0.5 * (weight**2).sum()

    best = scipy.optimize.minimize(objective, np.zeros(15), method="BFGS", options={"gtol": 1e-5}).x
    logits = (vectors[36:].numpy() - mean) / deviation @ best[:12].reshape(3, 4).T + best[12:]
    assert linear_classes(vectors, labels, folds)[36:].tolist() == logits.argmax(1).tolist()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"scikit-learn: pip install 'featx\[probe\]'"):
        linear_correct(*clusters(2, 2, 2, 1.0), torch.tensor([0, 1, 0, 1]))


def test_every_fold_has_its_share_of_every_class():
    labels = torch.tensor([0] * 10 + [1] * 15 + [2] * 5)
    folds = stratified_folds(labels, 5, 0)
    for class_, count in enumerate((2, 3, 1)):
        assert folds[labels == class_].bincount().tolist() == [count] * 5
    assert folds.tolist() != stratified_folds(labels, 5, 1).tolist()
    assert folds.tolist() == stratified_folds(labels, 5, 0).tolist()


def test_two_images_of_a_class_are_in_different_folds():
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    folds = stratified_folds(labels, 5, 0)
    assert all(len(folds[labels == class_].unique()) == 2 for class_ in range(4))


@pytest.mark.parametrize("correct", [lambda *a: knn_correct(*a, 3), linear_correct], ids=["knn", "linear"])
def test_separable_classes_are_told_apart_and_random_ones_are_not(correct):
    vectors, labels = clusters(15, 4, 8, 0.1)
    folds = stratified_folds(labels, 5, 0)
    assert correct(vectors, labels, folds).all()
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(5))
    assert correct(noise, labels, folds).double().mean() < 0.5  # chance is 0.25, with a standard error of 0.06


def test_an_image_is_not_its_own_neighbor():
    vectors, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    vectors[[0, 2]], vectors[[1, 3]] = vectors[[0, 1]].clone(), vectors[[1, 0]].clone() * 0.9
    folds = torch.tensor([0, 1, 0, 1])
    assert not knn_correct(vectors, labels, folds, 1).any()
