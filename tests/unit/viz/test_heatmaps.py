"""Heat maps over a photograph: norms, channels, overlays, and similarity to a point."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from support.figures import LEVELS, drawn, maps, panels, random_map
from support.figures import coffee as coffee

from featx import ArgumentError, InputError
from featx.viz import channels, norms, overlay, overlays, similarity
from featx.viz.figure import DIVERGING, SEQUENTIAL, scale_of


def pixels(figure: Figure) -> np.ndarray:
    """(h, w, 3): the figure as it is written."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def box(where: np.ndarray) -> tuple[int, int, int, int]:
    """Left, upper, right and lower end of what is true."""
    rows, columns = np.nonzero(where)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


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


def test_a_bar_says_what_the_colors_of_a_heat_mean(coffee):
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
def test_colors_span_the_values_and_diverge_about_0(values, limits, palette):
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
    assert len({tuple(color) for color in middle[100:150].tolist()}) == 1
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
def test_what_is_not_a_heat_is_refused(coffee, shape):
    with pytest.raises(InputError, match=r"a heat is \(h, w\) or \(1, h, w\), got shape"):
        overlay(coffee, torch.zeros(shape))


def test_a_heat_with_nan_is_refused(coffee):
    with pytest.raises(InputError, match="the heat holds NaN"):
        overlay(coffee, torch.tensor([[0, float("nan")]]))


def test_a_batch_of_two_is_no_map_of_a_photograph(coffee):
    with pytest.raises(InputError, match=r"of one image's map \(chs, h, w\), got shape \(2, 8, 4, 4\)"):
        norms(coffee, [torch.zeros(2, 8, 4, 4)], LEVELS[:1])


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
