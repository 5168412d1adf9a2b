"""Resizing and cropping, compared pixel by pixel with torchvision."""

import re
from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from featx import ArgumentError
from featx.resize import PARTS, resized, resized_center

NOISE = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)  # which shows the smallest shift
SIDES = st.integers(1, 400)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(NOISE[:height, :width])


def reference(image, size, crop, interpolation):
    mode = v2.InterpolationMode(interpolation)
    return v2.functional.center_crop(v2.functional.resize(image, size[::-1], mode), crop[::-1])


@settings(deadline=None, max_examples=300)
@given(SIDES, SIDES, SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]))
def test_the_center_of_a_resized_image_has_torchvisions_pixels(
    width, height, across, down, right, lower, interpolation
):
    image, size, crop = noise(width, height), (across, down), (right, lower)
    found = resized_center(image, size, crop, interpolation)
    assert np.array_equal(np.asarray(found), np.asarray(reference(image, list(size), list(crop), interpolation)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("down", [40, 384])
def test_the_center_of_a_very_tall_image_has_torchvisions_pixels(interpolation, down):
    for across, crop in ((1, (1, 1)), (3, (2, 30)), (2, (2, 200))):
        found = resized_center(noise(2, 363), (across, down), crop, interpolation)
        expected = reference(noise(2, 363), [across, down], list(crop), interpolation)
        assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(
    ("pixels", "size"), [((1920, 1080), (455, 256)), ((500, 375), (341, 256)), ((4032, 3024), (341, 256))]
)
def test_the_center_of_a_large_photograph_has_torchvisions_pixels(pixels, size):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*pixels[::-1], 3), np.uint8))
    found = resized_center(image, size, (224, 224), "bicubic")
    assert np.array_equal(np.asarray(found), np.asarray(reference(image, list(size), [224, 224], "bicubic")))


def test_what_is_cropped_anyway_is_not_resized(monkeypatch):
    """Of 455 columns, 224 are kept; a seventh or a thirteenth of 455 pixels are whole pixels of 1920."""
    asked: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: asked.append(size) or resize(self, size, *rest)
    )
    resized_center(Image.new("RGB", (1920, 1080)), (455, 256), (224, 224), "bicubic")
    step = 455 // gcd(1920 * PARTS, 455)
    assert asked == [(3 * step, 224)]


def test_an_image_of_the_size_asked_for_is_returned_itself():
    image = noise(30, 20)
    assert resized(image, (30, 20), "bicubic") is image


def test_an_unknown_interpolation_is_refused_with_the_known_ones():
    told = "interpolation='cubic': choose one of nearest, box, bilinear, hamming, bicubic, lanczos"
    with pytest.raises(ArgumentError, match=re.escape(told)):
        resized(noise(30, 20), (10, 10), "cubic")
