"""Joint bilateral upsampling: the formula, pixel by pixel, in double precision, and what follows from it."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import images, relative_difference
from torch import Tensor

from featx import ArgumentError
from featx.upsampling import JointBilateral, joint_bilateral


def by_formula(guide: Tensor, map_: Tensor, scale: tuple[int, int], method: JointBilateral) -> Tensor:
    """Kopf et al. 2007, equation 3, with loops: images (H, W, C) and map (h, w, chs), at H = h * scale."""
    (height, width), (down, across) = map_.shape[:2], scale
    dense = torch.zeros(height * down, width * across, map_.shape[2], dtype=torch.float64)
    for y in range(height * down):
        for x in range(width * across):
            total, weights = torch.zeros(map_.shape[2], dtype=torch.float64), 0.0
            for i in range(max(0, y // down - method.radius), min(height, y // down + method.radius + 1)):
                for j in range(max(0, x // across - method.radius), min(width, x // across + method.radius + 1)):
                    away = ((y + 0.5) / down - 0.5 - i) ** 2 + ((x + 0.5) / across - 0.5 - j) ** 2
                    unlike = (guide[y, x] - center(guide, i, j, scale)).square().sum().item()
                    weight = math.exp(-away / 2 / method.sigma_space**2 - unlike / 2 / method.sigma_color**2)
                    total, weights = total + weight * map_[i, j], weights + weight
            dense[y, x] = total / weights
    return dense


def center(guide: Tensor, i: int, j: int, scale: tuple[int, int]) -> Tensor:
    """The pixel in the middle of a cell, or the mean of the two or four pixels around the middle."""
    rows, columns = (
        range(cell * pixels + (pixels - 1) // 2, cell * pixels + pixels // 2 + 1)
        for cell, pixels in zip((i, j), scale, strict=True)
    )
    return torch.stack([guide[row, column] for row in rows for column in columns]).mean(0)


@pytest.mark.parametrize("scale", [(4, 3), (1, 2), (5, 5)])
@pytest.mark.parametrize(
    "method", [JointBilateral(), JointBilateral(1, 0.4, 2.0), JointBilateral(0), JointBilateral(6)]
)
def test_each_pixel_is_the_mean_of_the_formula(scale, method):
    map_, guide = images(2, 5, 3, 4).double(), images(2, 3, 3 * scale[0], 4 * scale[1], seed=1).double()
    dense = method(guide, map_, (3 * scale[0], 4 * scale[1]))
    for n in range(2):
        expected = by_formula(guide[n].movedim(0, -1), map_[n].movedim(0, -1), scale, method)
        # 1e-12: float64, in another order of sums
        assert relative_difference(dense[n].movedim(0, -1), expected) < 1e-12


def test_parts_of_bounded_memory_are_joined_without_a_seam(monkeypatch):
    map_, guide = images(2, 5, 7, 4), images(2, 3, 28, 16, seed=1)
    whole = JointBilateral()(guide, map_, (28, 16))
    monkeypatch.setattr(joint_bilateral, "MOST_ELEMENTS", 1)
    assert torch.equal(JointBilateral()(guide, map_, (28, 16)), whole)


def test_other_sizes_are_interpolated_from_whole_multiples():
    map_, guide = images(1, 5, 3, 4), images(1, 3, 13, 18, seed=1)
    dense = JointBilateral()(guide, map_, (13, 18))
    assert dense.shape == (1, 5, 13, 18)
    multiple = torch.nn.functional.interpolate(guide, (15, 20), mode="bilinear", antialias=True)
    expected = JointBilateral()(multiple, map_, (15, 20))
    expected = torch.nn.functional.interpolate(expected, (13, 18), mode="bilinear", antialias=True)
    assert torch.equal(dense, expected)


def test_the_edge_of_the_image_is_the_edge_of_the_map():
    """The left half is black, up to a column inside a cell; the maps of both halves are constant."""
    guide = torch.zeros(1, 3, 32, 32)
    guide[..., 14:] = 2.0
    map_ = torch.zeros(1, 1, 4, 4)
    map_[..., 2:] = 1.0
    dense = JointBilateral()(guide, map_, (32, 32))[0, 0]
    # cell 1, of columns 8 to 15, has its center at 12, and is black and 0
    assert dense[:, :14].max() < 0.01
    assert dense[:, 14:].min() > 0.99


def test_a_constant_map_stays_constant_at_the_borders():
    dense = JointBilateral()(images(1, 3, 24, 40), torch.full((1, 2, 3, 5), 7.0), (24, 40))
    torch.testing.assert_close(dense, torch.full_like(dense, 7.0), rtol=1e-6, atol=0)  # weights add up to 1, rounded


def test_gradients_of_map_and_image_are_those_of_the_formula():
    map_ = images(1, 2, 2, 2).double().requires_grad_()
    guide = images(1, 3, 4, 6, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda g, m: JointBilateral(1)(g, m, (4, 6)), (guide, map_))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_map(dtype):
    map_, guide = images(1, 5, 3, 4), images(1, 3, 12, 16, seed=1)
    dense = JointBilateral()(guide, map_.to(dtype), (12, 16))
    assert dense.dtype == dtype
    # weights are computed in float32; their products are rounded once to 8 bits
    assert relative_difference(dense.float(), JointBilateral()(guide, map_, (12, 16))) < 2**-6


def test_an_exported_program_computes_the_same():
    class Dense(torch.nn.Module):
        def forward(self, guide: Tensor, map_: Tensor) -> Tensor:
            return JointBilateral()(guide, map_, (12, 16))

    pair = images(2, 3, 12, 16, seed=1), images(2, 5, 3, 4)
    program = torch.export.export(Dense(), pair).module()
    assert relative_difference(program(*pair), Dense()(*pair)) < 1e-6  # another order of sums


def test_no_images_have_no_maps():
    assert JointBilateral()(images(0, 3, 12, 16), images(0, 5, 3, 4), (12, 16)).shape == (0, 5, 12, 16)


def test_threads_share_an_upsampler():
    method, guides = JointBilateral(), [images(1, 3, 24, 32, seed=seed) for seed in range(6)]
    map_ = images(1, 5, 6, 8)
    expected = [method(guide, map_, (24, 32)) for guide in guides]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda guide: method(guide, map_, (24, 32)), guides))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"radius": -1}, "radius=-1: expected an int of at least 0"),
        ({"sigma_space": 0.0}, "sigma_space=0.0: expected a positive number"),
        ({"sigma_color": math.nan}, "sigma_color=nan: expected a positive number"),
    ],
)
def test_fields_without_a_meaning_are_refused(fields, words):
    with pytest.raises(ArgumentError, match=words):
        JointBilateral(**fields)
