"""Pictures of maps."""

import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor

from featx import ArgumentError, FeatureInfo, InputError, Levels, MissingPackageError, OutputError
from featx.viz import (
    channels,
    compare,
    maps_grid,
    norms,
    overlay,
    overlays,
    principal_colours,
    save_figure,
    shared_bases,
    similarity,
)
from featx.viz.panels import DIVERGING, SEQUENTIAL, scale_of

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


def drawn(figure: Figure, panel: int) -> np.ndarray:
    """What the last layer of a panel shows."""
    return np.asarray(panels(figure)[panel].get_images()[-1].get_array())


def panels(figure: Figure) -> list:
    """The axes with pictures; colour bars stand in axes of their own, within these."""
    return [axis for axis in figure.axes if axis.get_images()]


def pixels(figure: Figure) -> np.ndarray:
    """(h, w, 3): the figure as it is written."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def box(where: np.ndarray) -> tuple[int, int, int, int]:
    """Left, upper, right and lower end of what is true."""
    rows, columns = np.nonzero(where)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


# colours that images share


def test_maps_of_several_images_share_colours():
    """The definition: the components of all their cells together."""
    maps_ = [random_map(16, 12, 7), random_map(16, 5, 9) + 1]
    (basis,) = shared_bases([[maps_[0]], [maps_[1][None]]])
    together = components(torch.cat([map_.flatten(1) for map_ in maps_], 1)[:, None])[0]
    assert_same(basis.colours(maps_[0]), together[: 12 * 7].reshape(12, 7, 3))
    assert_same(basis.colours(maps_[1]), together[12 * 7 :].reshape(5, 9, 3))


def test_the_basis_of_one_map_gives_its_own_colours():
    map_ = random_map(16, 12, 7)
    (basis,) = shared_bases([[map_]])
    assert torch.equal(basis.colours(map_), principal_colours(map_))


def test_a_grid_takes_a_basis_and_says_so(coffee):
    others = [map_.flip(1) * 2 for map_ in maps()]
    bases = shared_bases([maps(), others])
    figure = maps_grid(coffee, maps(), LEVELS, basis=bases)
    assert np.array_equal(drawn(figure, 1), bases[0].colours(maps()[0]).numpy())
    assert not np.allclose(drawn(figure, 1), principal_colours(maps()[0]).numpy())
    assert "of all images together" in figure.get_supxlabel()


def test_maps_of_different_levels_share_no_basis():
    with pytest.raises(InputError, match=r"maps of \[8, 16\] channels have no axes in common"):
        shared_bases([[random_map(8, 3, 4)], [random_map(16, 3, 4)]])


def test_a_basis_of_another_level_is_refused():
    (basis,) = shared_bases([[random_map(8, 3, 4)]])
    with pytest.raises(InputError, match="the basis is of 8 channels, the map has 16"):
        basis.colours(random_map(16, 3, 4))


# heats


def test_norms_are_the_lengths_of_the_vectors_of_channels(coffee):
    figure = norms(coffee, maps(), LEVELS)
    expected = np.linalg.norm(maps()[1].numpy(), axis=0)
    assert np.allclose(drawn(figure, 2), expected, rtol=1e-6)  # single precision
    assert panels(figure)[2].get_title() == "layer1\n16 channels · 1/8 · 18×12 cells"


def test_channels_are_those_that_vary_most(coffee):
    map_ = random_map(8, 12, 18)
    order = np.argsort(-map_.flatten(1).std(1).numpy())
    figure = channels(coffee, map_, LEVELS[0], count=3, title="resnet18")
    assert [axis.get_title() for axis in panels(figure)[1:]] == [f"channel {i}" for i in order[:3]]
    assert np.array_equal(drawn(figure, 1), map_[order[0]].numpy())
    assert figure.get_suptitle() == "resnet18\nthe 3 that vary most of stem, 8 channels · 1/4 · 18×12 cells"


def test_all_channels_are_shown_where_there_are_fewer(coffee):
    assert len(panels(channels(coffee, random_map(2, 6, 9), LEVELS[2]))) == 1 + 2


def test_no_channels_are_no_picture(coffee):
    with pytest.raises(ArgumentError, match="count=0: expected at least one channel"):
        channels(coffee, random_map(2, 6, 9), LEVELS[2], count=0)


def test_a_bar_says_what_the_colours_of_a_heat_mean(coffee):
    heat = torch.rand(4, 6) + 2
    figure = overlay(coffee, heat, label="attention")
    (axis,) = panels(figure)
    (bar,) = axis.child_axes
    assert bar.get_ylabel() == "attention"
    assert bar.get_ylim() == pytest.approx((heat.min().item(), heat.max().item()))


@pytest.mark.parametrize(
    ("values", "limits", "palette"),
    [
        ([0.0, 2.0], (0, 2), SEQUENTIAL),
        ([-1.0, 3.0], (-3, 3), DIVERGING),
        ([-4.0, -1.0], (-4, 4), DIVERGING),
        ([0.0, 0.0], (0, 1), SEQUENTIAL),
    ],
    ids=["positive", "both", "negative", "flat"],
)
def test_colours_span_the_values_and_diverge_about_0(values, limits, palette):
    scale = scale_of(torch.tensor([values]))
    assert ((scale.low, scale.high), scale.palette) == (limits, palette)


@pytest.mark.parametrize("size", [(144, 96), (60, 200), (333, 100)], ids=["3:2", "tall", "wide"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 5)])
def test_a_hot_cell_lands_on_the_pixels_it_stands_for(size, row, column):
    """The photograph of a white block, where cell (row, column) of 4x6 is, shows the block where the heat is hot."""
    width, height = size
    cell = (column * width / 6, row * height / 4, (column + 1) * width / 6, (row + 1) * height / 4)
    photograph = Image.new("RGB", (width * 12, height * 12))  # fine enough for the ends of cells to be ends of pixels
    photograph.paste("white", tuple(round(12 * side) for side in cell))
    heat = torch.zeros(4, 6)
    heat[row, column] = 1
    seen = pixels(overlay(photograph, heat * 0, label="heat"))
    hot = pixels(overlay(Image.new("RGB", photograph.size), heat, label="heat"))
    flat = pixels(overlay(Image.new("RGB", photograph.size), heat * 0, label="heat"))
    white, warm = box(np.abs(seen - flat).sum(2) > 60), box(np.abs(hot - flat).sum(2) > 60)
    assert np.abs(np.subtract(white, warm)).max() <= 1  # both are rounded to pixels of the figure


def test_an_overlay_has_the_aspect_of_the_photograph():
    (axis,) = panels(overlay(Image.new("RGB", (300, 100)), torch.eye(5)))
    axis.figure.draw_without_rendering()
    area = axis.get_window_extent()
    assert area.width / area.height == pytest.approx(3, abs=0.01)


def test_the_photograph_shows_through_a_heat():
    half = Image.new("RGB", (100, 100))
    half.paste("white", (0, 0, 50, 100))
    flat = pixels(overlay(half, torch.zeros(1, 1)))
    middle = flat[flat.shape[0] // 2]
    assert len({tuple(colour) for colour in middle[100:150].tolist()}) == 1
    assert np.abs(middle[100] - middle[350]).sum() > 60


def test_the_panels_of_overlays_are_the_heats_under_their_captions(coffee):
    heats = {"blocks.0\nhead 0": torch.rand(3, 4), "blocks.1\nhead 0": torch.rand(1, 6, 9)}
    figure = overlays(coffee, heats, point=(0.5, 0.5))
    assert [axis.get_title() for axis in panels(figure)[1:]] == list(heats)
    assert [drawn(figure, i).shape for i in (1, 2)] == [(3, 4), (6, 9)]


def test_a_point_is_marked_where_it_is(coffee):
    (axis,) = panels(overlay(coffee, torch.rand(3, 4), point=(0.25, 0.75)))
    assert {(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines} == {(144 / 4, 96 * 3 / 4)}


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 4)])
def test_what_is_no_heat_is_refused(coffee, shape):
    with pytest.raises(InputError, match=r"a heat is \(h, w\) or \(1, h, w\), got shape"):
        overlay(coffee, torch.zeros(shape))


def test_a_heat_with_nan_is_refused(coffee):
    with pytest.raises(InputError, match="the heat holds NaN"):
        overlay(coffee, torch.tensor([[0, float("nan")]]))


def test_a_batch_of_two_is_no_map_of_a_photograph(coffee):
    with pytest.raises(InputError, match=r"of one image's map \(chs, h, w\), got shape \(2, 8, 4, 4\)"):
        norms(coffee, [torch.zeros(2, 8, 4, 4)], LEVELS[:1])


def test_a_long_name_is_told_in_lines_and_not_cut(coffee):
    levels = Levels([FeatureInfo(8, 4, ".".join(["encoder.layers.0"] * 8))])
    figure = maps_grid(coffee, maps()[:1], levels, title="a/path/of " * 30)
    figure.draw_without_rendering()
    width = figure.get_window_extent().width
    texts = [figure._suptitle, *(axis.title for axis in panels(figure))]
    extents = [text.get_window_extent() for text in texts]
    assert all(extent.x0 >= 0 and extent.x1 <= width for extent in extents)
    assert panels(figure)[1].get_title().replace("\n", "").startswith(levels[0].name)


def test_a_large_photograph_is_drawn_with_fewer_pixels():
    figure = overlay(Image.new("RGB", (4000, 2000)), torch.rand(3, 4))
    below = panels(figure)[0].get_images()[0]
    assert below.get_array().shape == (512, 1024)
    assert tuple(below.get_extent()) == (0, 4000, 2000, 0)


# several models


def test_a_comparison_has_a_row_per_model_under_its_name(coffee):
    figure = compare(coffee, {"a": (maps(), LEVELS), "b": (maps()[:1], LEVELS[:1])}, title="two")
    titles = [axis.get_title() for axis in panels(figure)]
    assert [title.split("\n")[0] for title in titles] == ["a", "stem", "layer1", "layer2.0", "b", "stem"]
    figure.draw_without_rendering()
    left = [panels(figure)[i].get_position().x0 for i in (0, 4)]
    assert left[0] == pytest.approx(left[1])
    assert_same(torch.from_numpy(drawn(figure, 5)), components(maps()[0]))


def test_a_comparison_of_nothing_is_refused(coffee):
    with pytest.raises(ArgumentError, match="rows is empty"):
        compare(coffee, {})


# similarity


def test_similarity_is_the_cosine_to_the_cell_at_the_point():
    map_ = random_map(16, 4, 6)
    vectors = map_.permute(1, 2, 0).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    heat = similarity(map_[None], (0.9, 0.3))  # column 5 of 6, row 1 of 4
    assert np.abs(heat.numpy() - vectors @ vectors[1, 5]).max() < 1e-6  # single precision
    assert heat[1, 5] == pytest.approx(1)


@pytest.mark.parametrize(("point", "cell"), [((0, 0), (0, 0)), ((1, 1), (3, 5)), ((0.5, 0.5), (2, 3))])
def test_a_point_is_in_the_cell_that_covers_it(point, cell):
    map_ = torch.eye(24).unflatten(1, (4, 6))  # every cell is like itself alone
    assert similarity(map_, point).nonzero().tolist() == [[*cell]]


def test_a_cell_without_activation_is_like_none():
    map_ = random_map(4, 2, 2)
    map_[:, 0, 1] = 0
    assert similarity(map_, (0, 0))[0, 1] == 0
    assert (similarity(map_, (0.9, 0)) == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_similarity_does_not_depend_on_the_scale_of_a_map(scale):
    map_ = random_map(16, 4, 6)
    assert torch.allclose(similarity(map_ * scale, (0.5, 0.5)), similarity(map_, (0.5, 0.5)), atol=1e-6)  # rounding


@pytest.mark.parametrize("point", [(-0.1, 0.5), (0.5, 1.01), (float("nan"), 0.5)])
def test_a_point_outside_is_refused(point):
    with pytest.raises(ArgumentError, match=r"is outside of the photograph: expected shares .* 0 to 1"):
        similarity(random_map(2, 3, 4), point)


def test_similarity_is_of_one_image():
    with pytest.raises(InputError, match=r"one image's map \(chs, h, w\), got shape \(2, 8, 4, 4\)"):
        similarity(torch.zeros(2, 8, 4, 4), (0, 0))


# notebooks


@pytest.mark.parametrize("draw", ["maps_grid", "norms", "overlay", "compare"])
def test_figures_show_themselves_in_notebooks(coffee, draw):
    """IPython asks an object for `_repr_png_`; matplotlib's own figures have none."""
    figure = {
        "maps_grid": lambda: maps_grid(coffee, maps()[:1], LEVELS[:1]),
        "norms": lambda: norms(coffee, maps()[:1], LEVELS[:1]),
        "overlay": lambda: overlay(coffee, torch.eye(4)),
        "compare": lambda: compare(coffee, {"a": (maps()[:1], LEVELS[:1])}),
    }[draw]()
    assert isinstance(figure, Figure)
    with Image.open(BytesIO(figure._repr_png_())) as shown:
        assert shown.format == "PNG"
        assert shown.size == pytest.approx(110 * figure.get_size_inches(), abs=1)  # whole pixels
