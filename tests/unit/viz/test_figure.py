"""Figures of a photograph's maps: panels, captions, files, several models, notebooks."""

import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from support.figures import LEVELS, assert_colors, components, drawn, maps, panels
from support.figures import coffee as coffee
from support.figures import figure as figure

from featx import ArgumentError, FeatureInfo, InputError, Levels, MissingPackageError, OutputError
from featx.viz import compare, maps_grid, norms, overlay, principal_colors, save_figure


def test_a_grid_has_a_panel_for_the_photograph_and_one_for_each_map(figure, coffee):
    pictures = [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]
    assert [picture.shape for picture in pictures] == [(96, 144, 3), (24, 36, 3), (12, 18, 3), (6, 9, 3)]
    assert np.array_equal(pictures[0], np.asarray(coffee))


def test_panels_cover_the_same_area(figure):
    extents = [axis.get_images()[0].get_extent() for axis in figure.axes if axis.get_images()]
    assert [tuple(extent) for extent in extents] == [(0, 144, 96, 0)] * 4


def test_a_map_is_drawn_in_its_principal_colors(coffee):
    figure = maps_grid(coffee, maps()[:1], LEVELS[:1])
    drawn = figure.axes[1].get_images()[0].get_array()
    assert_colors(torch.from_numpy(np.asarray(drawn)), components(maps()[0]))


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


def test_a_folder_is_not_a_place_for_a_picture(tmp_path, figure):
    (tmp_path / "maps.png").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*maps\.png: .*directory"):
        save_figure(figure, tmp_path / "maps.png")


def test_without_matplotlib_the_error_says_what_to_install(coffee, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"pictures need matplotlib: pip install 'featx\[viz\]'"):
        maps_grid(coffee, maps(), LEVELS)


def test_a_map_with_nan_is_refused():
    with pytest.raises(InputError, match="holds NaN or infinite values"):
        principal_colors(torch.full((3, 2, 2), float("nan")))


def test_a_long_name_is_reported_in_lines_and_not_cut(coffee):
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
    assert_colors(torch.from_numpy(drawn(figure, 5)), components(maps()[0]))


def test_a_comparison_of_nothing_is_refused(coffee):
    with pytest.raises(ArgumentError, match="rows is empty"):
        compare(coffee, {})


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
