"""Pictures of maps."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor

from featx import FeatureInfo, InputError, Levels, MissingPackageError, OutputError
from featx.viz import maps_grid, save_figure
from featx.viz import principal_colours

LEVELS = Levels([FeatureInfo(8, 4, "stem"), FeatureInfo(16, 8, "layer1"), FeatureInfo(2, 16, "layer2.0")])


def random_map(*shape: int) -> Tensor:
    """(chs, h, w) whose channels vary by different amounts, so that components are well apart."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return values * torch.linspace(1, 3, shape[0])[:, None, None]


def maps() -> list[Tensor]:
    return [random_map(8, 24, 36), random_map(16, 12, 18), random_map(2, 6, 9)]


@pytest.fixture
def coffee() -> Image.Image:
    return Image.fromarray(data.coffee()).resize((144, 96))


@pytest.fixture
def figure(coffee) -> Figure:
    return maps_grid(coffee, maps(), LEVELS, title="resnet $18_$ · weights: a_b")


def components(map_: Tensor) -> np.ndarray:
    """(h, w, 3): the definition: cells projected on the eigenvectors of their covariance, stretched to [0, 1].

    An eigenvector's sign is arbitrary: its largest weight is positive here.
    """
    cells = map_.flatten(1).T.double().numpy()
    variances, directions = np.linalg.eigh(np.cov(cells.T))
    directions = directions[:, np.argsort(variances)[::-1][:3]]
    parts = (cells - cells.mean(0)) @ (directions * np.sign([axis[np.abs(axis).argmax()] for axis in directions.T]))
    low, high = np.percentile(parts, [1, 99], axis=0)
    return ((parts - low) / (high - low)).clip(0, 1).reshape(*map_.shape[1:], -1)


def assert_same(colours: Tensor, expected: np.ndarray) -> None:
    for channel in range(expected.shape[-1]):
        # 1e-5: single precision, and a percentile divides by a difference
        assert np.abs(colours[..., channel].numpy() - expected[..., channel]).max() < 1e-5


@pytest.mark.parametrize("shape", [(3, 9, 11), (16, 12, 7), (40, 4, 5)], ids=["3 channels", "16", "more than cells"])
def test_colours_are_the_principal_components(shape):
    map_ = random_map(*shape)
    colours = principal_colours(map_)
    assert colours.shape == (*shape[1:], 3)
    assert_same(colours, components(map_))


def test_colours_lie_between_0_and_1():
    colours = principal_colours(random_map(16, 20, 20) * 1000)
    assert (colours.min(), colours.max()) == (0, 1)


def test_colours_do_not_depend_on_the_order_of_channels():
    map_ = random_map(16, 12, 7)
    assert torch.allclose(principal_colours(map_), principal_colours(map_.flip(0)), atol=1e-5)  # single precision


def test_colours_do_not_depend_on_the_scale_of_a_map():
    map_ = random_map(16, 12, 7)
    assert torch.allclose(principal_colours(map_), principal_colours(map_ * 1e-20), atol=1e-5)  # single precision


def test_two_channels_give_two_colours_and_gray_for_the_third():
    map_ = random_map(2, 9, 11)
    colours = principal_colours(map_)
    assert_same(colours, components(map_))
    assert (colours[..., 2] == 0.5).all()


def test_one_channel_gives_one_colour_the_brighter_where_the_map_is_larger():
    colours = principal_colours(torch.arange(101.0).reshape(1, 1, 101))
    # the first and the last of 101 values lie below and above the 1st and the 99th percentile
    assert torch.allclose(colours[0, :, 0], ((torch.arange(101) - 1) / 98).clamp(0, 1))
    assert (colours[..., 1:] == 0.5).all()


def test_channels_that_repeat_each_other_give_one_colour():
    colours = principal_colours(random_map(1, 9, 11).repeat(5, 1, 1))
    assert colours[..., 0].std() > 0.1
    assert (colours[..., 1:] == 0.5).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_a_constant_map_is_gray(value):
    assert (principal_colours(torch.full((8, 5, 6), value)) == 0.5).all()


def test_a_map_of_one_cell_is_gray():
    assert torch.equal(principal_colours(random_map(8, 1, 1)), torch.full((1, 1, 3), 0.5))


def test_a_map_of_two_cells_has_two_values_of_one_colour():
    colours = principal_colours(torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]]]))
    assert colours.tolist() == [[[0, 0.5, 0.5], [1, 0.5, 0.5]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_maps_of_any_precision_have_colours(dtype):
    map_ = random_map(8, 9, 11).to(dtype)
    assert torch.equal(principal_colours(map_), principal_colours(map_.float()))


def test_a_map_that_needs_gradients_has_colours_without():
    assert not principal_colours(random_map(8, 9, 11).requires_grad_()).requires_grad


def test_a_grid_has_a_panel_for_the_photograph_and_one_for_each_map(figure, coffee):
    pictures = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    assert [picture.shape for picture in pictures] == [(96, 144, 3), (24, 36, 3), (12, 18, 3), (6, 9, 3)]
    assert np.array_equal(pictures[0], np.asarray(coffee))


def test_panels_cover_the_same_area(figure):
    extents = [axis.get_images()[0].get_extent() for axis in figure.axes if axis.get_images()]
    assert [tuple(extent) for extent in extents] == [(0, 144, 96, 0)] * 4


def test_a_map_is_drawn_in_its_principal_colours(coffee):
    figure = maps_grid(coffee, maps()[:1], LEVELS[:1])
    drawn = figure.axes[1].get_images()[0].get_array()
    assert_same(torch.from_numpy(np.asarray(drawn)), components(maps()[0]))


def test_captions_say_level_channels_reduction_and_size(figure):
    assert [axis.get_title() for axis in figure.axes if axis.get_images()] == [
        "photograph\n144×96 pixels",
        "stem\n8 channels · 1/4 · 36×24 cells",
        "layer1\n16 channels · 1/8 · 18×12 cells",
        "layer2.0\n2 channels · 1/16 · 9×6 cells",
    ]


def test_a_title_is_shown_as_it_is(figure):
    assert figure.get_suptitle() == "resnet $18_$ · weights: a_b"
    figure.draw_without_rendering()  # where matplotlib would stumble over what it takes for a formula


def test_maps_may_come_as_a_batch_of_one(coffee):
    figure = maps_grid(coffee, [map_[None] for map_ in maps()], LEVELS)
    assert figure.axes[3].get_images()[0].get_array().shape == (6, 9, 3)


def test_maps_without_their_levels_are_a_mistake(coffee):
    with pytest.raises(ValueError, match="shorter"):
        maps_grid(coffee, maps(), LEVELS[:2])


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "pdf", "svg"])
def test_a_figure_is_written_in_the_format_of_its_ending(tmp_path, figure, ending):
    save_figure(figure, tmp_path / f"maps.{ending}")
    start = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "pdf": b"%PDF", "svg": b"<?xml"}[ending.lower()]
    assert (tmp_path / f"maps.{ending}").read_bytes().startswith(start)


def test_a_figure_is_written_into_a_folder_that_did_not_exist(tmp_path, figure):
    save_figure(figure, tmp_path / "new/er/maps.png")
    with Image.open(tmp_path / "new/er/maps.png") as picture:
        assert picture.size == pytest.approx(110 * figure.get_size_inches(), abs=1)  # whole pixels


@pytest.mark.parametrize("name", ["maps.xyz", "maps", "maps."])
def test_an_ending_that_is_no_format_is_refused_with_those_that_are(tmp_path, figure, name):
    with pytest.raises(OutputError, match=rf"{name}: name a picture that ends with one of .*jpg.*, pdf, .*png"):
        save_figure(figure, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_an_error_that_names_it(tmp_path, figure):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file/maps\.png: "):
        save_figure(figure, tmp_path / "file/maps.png")


def test_a_folder_is_no_place_for_a_picture(tmp_path, figure):
    (tmp_path / "maps.png").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*maps\.png: .*directory"):
        save_figure(figure, tmp_path / "maps.png")


def test_without_matplotlib_the_error_says_what_to_install(coffee, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pictures need matplotlib: pip install 'featx\[viz\]'"):
        maps_grid(coffee, maps(), LEVELS)


def test_a_map_with_nan_is_refused():
    with pytest.raises(InputError, match="holds NaN or infinite values"):
        principal_colours(torch.full((3, 2, 2), float("nan")))
