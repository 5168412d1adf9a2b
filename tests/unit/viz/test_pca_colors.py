"""PCA colors of maps, for one image and shared by several."""

import numpy as np
import pytest
import torch
from support.figures import LEVELS, assert_colors, components, drawn, maps, random_map
from support.figures import coffee as coffee

from featx import InputError
from featx.viz import maps_grid, principal_colors, shared_bases


@pytest.mark.parametrize("shape", [(3, 9, 11), (16, 12, 7), (40, 4, 5)], ids=["3 channels", "16", "more than cells"])
def test_colors_are_the_principal_components(shape):
    map_ = random_map(*shape)
    colors = principal_colors(map_)
    assert colors.shape == (*shape[1:], 3)
    assert_colors(colors, components(map_))


def test_colors_lie_between_0_and_1():
    colors = principal_colors(random_map(16, 20, 20) * 1000)
    assert (colors.min(), colors.max()) == (0, 1)


def test_colors_do_not_depend_on_the_order_of_channels():
    map_ = random_map(16, 12, 7)
    assert torch.allclose(principal_colors(map_), principal_colors(map_.flip(0)), atol=1e-5)  # single precision


def test_colors_do_not_depend_on_the_scale_of_a_map():
    map_ = random_map(16, 12, 7)
    assert torch.allclose(principal_colors(map_), principal_colors(map_ * 1e-20), atol=1e-5)  # single precision


def test_two_channels_give_two_colors_and_gray_for_the_third():
    map_ = random_map(2, 9, 11)
    colors = principal_colors(map_)
    assert_colors(colors, components(map_))
    assert (colors[..., 2] == 0.5).all()


def test_one_channel_gives_one_color_the_brighter_where_the_map_is_larger():
    colors = principal_colors(torch.arange(101.0).reshape(1, 1, 101))
    # the first and the last of 101 values lie below and above the 1st and the 99th percentile
    assert torch.allclose(colors[0, :, 0], ((torch.arange(101) - 1) / 98).clamp(0, 1))
    assert (colors[..., 1:] == 0.5).all()


def test_channels_that_repeat_each_other_give_one_color():
    colors = principal_colors(random_map(1, 9, 11).repeat(5, 1, 1))
    assert colors[..., 0].std() > 0.1
    assert (colors[..., 1:] == 0.5).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_a_constant_map_is_gray(value):
    assert (principal_colors(torch.full((8, 5, 6), value)) == 0.5).all()


def test_a_map_of_one_cell_is_gray():
    assert torch.equal(principal_colors(random_map(8, 1, 1)), torch.full((1, 1, 3), 0.5))


def test_a_map_of_two_cells_has_two_values_of_one_color():
    colors = principal_colors(torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]]]))
    assert colors.tolist() == [[[0, 0.5, 0.5], [1, 0.5, 0.5]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_precision_have_colors(dtype):
    map_ = random_map(8, 9, 11).to(dtype)
    assert torch.equal(principal_colors(map_), principal_colors(map_.float()))


def test_a_map_that_needs_gradients_has_colors_without():
    assert not principal_colors(random_map(8, 9, 11).requires_grad_()).requires_grad


def test_maps_of_several_images_share_colors():
    """The definition: the components of all their cells together."""
    maps_ = [random_map(16, 12, 7), random_map(16, 5, 9) + 1]
    (basis,) = shared_bases([[maps_[0]], [maps_[1][None]]])
    together = components(torch.cat([map_.flatten(1) for map_ in maps_], 1)[:, None])[0]
    assert_colors(basis.colors(maps_[0]), together[: 12 * 7].reshape(12, 7, 3))
    assert_colors(basis.colors(maps_[1]), together[12 * 7 :].reshape(5, 9, 3))


def test_the_basis_of_one_map_gives_its_own_colors():
    map_ = random_map(16, 12, 7)
    (basis,) = shared_bases([[map_]])
    assert torch.equal(basis.colors(map_), principal_colors(map_))


def test_a_grid_takes_a_basis_and_says_so(coffee):
    others = [map_.flip(1) * 2 for map_ in maps()]
    bases = shared_bases([maps(), others])
    figure = maps_grid(coffee, maps(), LEVELS, basis=bases)
    assert np.array_equal(drawn(figure, 1), bases[0].colors(maps()[0]).numpy())
    assert not np.allclose(drawn(figure, 1), principal_colors(maps()[0]).numpy())
    assert "of all images together" in figure.get_supxlabel()


def test_maps_of_different_levels_share_no_basis():
    with pytest.raises(InputError, match=r"maps of \[8, 16\] channels have no axes in common"):
        shared_bases([[random_map(8, 3, 4)], [random_map(16, 3, 4)]])


def test_a_basis_of_another_level_is_refused():
    (basis,) = shared_bases([[random_map(8, 3, 4)]])
    with pytest.raises(InputError, match="the basis is of 8 channels, the map has 16"):
        basis.colors(random_map(16, 3, 4))
