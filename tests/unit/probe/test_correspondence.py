"""Transformations are scikit-image's; maps of coordinates correspond exactly, and random maps by chance."""

import numpy as np
import pytest
import torch
from skimage.transform import ProjectiveTransform, warp
from torch import Tensor

from featx.probe import pck
from featx.probe.correspondence import TRANSFORMATIONS, centers, correspondences, homography, transformed, warped

MAKE = pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_sphere(places: Tensor, height: int, width: int) -> Tensor:
    """A map (3, height, width) of unit vectors, whose cosine decreases with the distance of places (n, 2)."""
    x, y = (places / 4).T
    return torch.stack([x, y, (1 - x**2 - y**2).sqrt()]).reshape(3, height, width)


@MAKE
def test_maps_of_coordinates_correspond_exactly(make):
    matrix = make(generator())
    other = on_sphere(transformed(centers(12, 16), matrix), 12, 16)
    assert pck(on_sphere(centers(12, 16), 12, 16), other, matrix, (96, 128)) == 1


def test_the_threshold_is_a_fraction_of_the_longer_side():
    """Of two cells beside each other in 100 pixels, every match is 50 pixels off."""
    map_ = torch.eye(2).reshape(2, 1, 2)
    identity = torch.eye(3, dtype=torch.float64)
    assert pck(map_, map_.flip(2), identity, (20, 100), threshold=0.49) == 0
    assert pck(map_, map_.flip(2), identity, (20, 100), threshold=0.5) == 1
    assert pck(map_, map_, identity, (20, 100), threshold=0.01) == 1


@MAKE
def test_random_maps_correspond_by_chance(make):
    side, matrix = 14, make(generator(1))
    map_, other = torch.randn(2, 64, side, side, generator=generator())
    places = transformed(centers(side, side), matrix)
    near = torch.cdist(places, centers(side, side)) <= 2 * 0.1
    # the standard error of 196 cells with a chance of 0.03 is 0.013
    assert pck(map_, other, matrix, (224, 224)) == pytest.approx(near.double().mean().item(), abs=0.05)


def test_a_flip_is_a_flip():
    image = torch.randn(3, 6, 10, generator=generator())
    torch.testing.assert_close(warped(image, TRANSFORMATIONS["flip"](generator())), image.flip(2))


def test_a_homography_maps_four_points():
    points = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    places = points * torch.tensor([[0.5, 0.9], [0.7, 0.8], [1.0, 0.6], [0.9, 0.7]])
    matrix = homography(points, places)
    torch.testing.assert_close(transformed(points, matrix), places)
    reference = ProjectiveTransform.from_estimate(points.numpy(), places.numpy())
    np.testing.assert_allclose(matrix.numpy(), reference.params / reference.params[2, 2], atol=1e-9)


@MAKE
def test_an_image_is_warped_as_scikit_image_does(make):
    side, matrix = 32, make(generator())
    image = torch.rand(1, side, side, generator=generator(), dtype=torch.float64)
    to_places = np.array([[2 / side, 0, 1 / side - 1], [0, 2 / side, 1 / side - 1], [0, 0, 1]])
    pixels = np.linalg.inv(to_places) @ matrix.numpy() @ to_places  # in pixels, whose centers are integers
    expected = warp(image[0].numpy(), ProjectiveTransform(pixels), order=1)
    inner = (slice(2, -2), slice(2, -2))  # borders are handled differently
    np.testing.assert_allclose(warped(image, matrix)[0].numpy()[inner], expected[inner], atol=1e-6)


@MAKE
def test_all_true_places_are_inside_the_image(make):
    for seed in range(20):
        assert (transformed(centers(7, 7), make(generator(seed))).abs() <= 1).all()


def test_scores_of_images_are_means_over_transformations():
    """An extractor that returns the image itself finds every cell, one that returns noise does not."""
    images = [on_sphere(centers(24, 24), 24, 24).float() for _ in range(2)]

    def maps_of(batch: Tensor) -> list[Tensor]:
        return [batch, torch.randn(len(batch), 8, 24, 24, generator=generator())]

    scores = correspondences(maps_of, images, 0.1, 0)
    assert scores.shape == (2, 2)
    # borders of warped images are blended with zeros
    assert scores[:, 0].min() > 0.9
    assert scores[:, 1].max() < 0.2
