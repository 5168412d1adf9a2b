"""Unusual image files are extracted as viewers show them, and every failure is named."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_extractor, relative_difference
from PIL import Image
from safetensors.torch import load_file
from skimage import data
from support.extraction import SIZE, assert_maps_are_of, direct, in_order_of_names, index, names, paint, stored

from featx import FeatureExtractWrapper, extract


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050")


@pytest.fixture(scope="module")
def odd(tmp_path_factory, extractor) -> Path:
    """`in`: files of every odd kind, `out`: what became of them."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "in/nested/deeper").mkdir(parents=True)
    write_good(folder / "in")
    write_bad(folder / "in")
    (folder / "in/notes.txt").write_text("not for us")
    extract([folder / "in"], extractor, folder / "out", size=SIZE, batch_size=5)
    return folder


def write_good(folder: Path) -> None:
    colors = data.astronaut()[:80, 200:300]
    photograph = Image.fromarray(colors)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(folder / "upright.png")
    photograph.transpose(Image.Transpose.ROTATE_90).save(folder / "sideways.png", exif=exif)
    photograph.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(data.camera()[:64, :64].astype(np.uint16) * 257).save(folder / "gray16.png")
    Image.fromarray(data.camera()[:64, :64]).save(folder / "gray.png")
    clear = Image.fromarray(np.dstack([colors, np.where(colors[..., 0] > 128, 255, 0).astype(np.uint8)]))
    clear.save(folder / "rgba.png")
    clear.convert("LA").save(folder / "la.png")
    palette = photograph.quantize(16)
    palette.save(folder / "palette.png", transparency=3)
    photograph.save(folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", photograph.size, "red")])
    Image.new("RGB", (1, 1), "teal").save(folder / "pixel.png")
    photograph.save(folder / "nested/deeper/写真.webp", lossless=True)


def write_bad(folder: Path) -> None:
    Image.fromarray(data.astronaut()).save(folder / "cut.jpg")
    with (folder / "cut.jpg").open("r+b") as file:
        file.truncate(9000)
    (folder / "text.jpg").write_text("a letter")
    (folder / "empty.png").touch()
    Image.fromarray(np.ones((64, 64), dtype=np.float32)).save(folder / "float.tiff")
    Image.new("RGB", (1000, 9)).save(folder / "strip.png")


def over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A"))
    return white


def first_frame(path: Path) -> Image.Image:
    with Image.open(path) as animation:
        return animation.convert("RGB")


GOOD = {
    "upright.png": lambda folder: Image.open(folder / "upright.png"),
    "sideways.png": lambda folder: Image.open(folder / "upright.png"),
    "cmyk.jpg": lambda folder: Image.open(folder / "cmyk.jpg").convert("RGB"),
    "gray.png": lambda folder: Image.open(folder / "gray.png").convert("RGB"),
    "gray16.png": lambda folder: Image.open(folder / "gray.png").convert("RGB"),
    "rgba.png": lambda folder: over_white(Image.open(folder / "rgba.png")),
    "la.png": lambda folder: over_white(Image.open(folder / "la.png")),
    "palette.png": lambda folder: over_white(Image.open(folder / "palette.png")),
    "animated.gif": lambda folder: first_frame(folder / "animated.gif"),
    "pixel.png": lambda folder: Image.new("RGB", (9, 9), "teal"),
    "写真.webp": lambda folder: Image.open(folder / "upright.png"),
}
BAD = {
    "cut.jpg": "truncated",
    "text.jpg": "not an image",
    "empty.png": "the file is empty",
    "float.tiff": "floating-point pixels have no agreed range",
    "strip.png": "1000x9 pixels: one side is more than 100 times the other",
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_file_that_is_an_image_is_extracted_as_the_picture_it_shows(odd, extractor, name):
    assert_maps_are_of(extractor, stored(odd / "out")[name], GOOD[name](odd / "in"))


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_shown_is_recorded_with_the_reason(odd, name):
    (line,) = [row for row in index(odd / "out") if Path(row["source"]).name == name]
    assert BAD[name] in line["error"]
    assert (line["status"], line["shard"], line["row"]) == ("failed", None, None)


def test_every_image_of_a_folder_has_one_line_and_nothing_else_has(odd):
    assert sorted(Path(row["source"]).name for row in index(odd / "out")) == sorted([*GOOD, *BAD])


def test_bad_files_leave_no_trace_but_their_lines(odd):
    assert names(odd / "out") == ["index.parquet", "maps-000000.safetensors", "meta.json"]
    assert len(load_file(odd / "out/maps-000000.safetensors")["act1"]) == len(GOOD)


def test_if_all_files_are_bad_there_are_their_reasons_and_no_rows(tmp_path, extractor):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    summary = extract([tmp_path], extractor, tmp_path / "out", size=SIZE)
    assert (summary.written, len(summary.failed)) == (0, 2)
    assert load_file(summary.shards[0]) == {}
    assert [row["status"] for row in index(tmp_path / "out")] == ["failed"] * 2


def test_a_photograph_so_large_that_pillow_warns_of_it_is_extracted(tmp_path, extractor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    Image.new("L", (80, 80), 128).save(tmp_path / "a.jpg")
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "a.jpg").close()
    extract([tmp_path / "a.jpg"], extractor, tmp_path / "out", size=SIZE)
    assert_maps_are_of(extractor, stored(tmp_path / "out")["a.jpg"], Image.new("RGB", (80, 80), (128, 128, 128)))


def test_a_file_that_is_not_image_by_its_ending_is_tried_when_named(tmp_path, extractor):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "scan.dat", format="PNG")
    extract([tmp_path / "scan.dat"], extractor, tmp_path / "out", size=SIZE)
    assert_maps_are_of(extractor, stored(tmp_path / "out")["scan.dat"], Image.new("RGB", (64, 64), "red"))


def test_an_image_whose_maps_exceed_float16_has_failed_and_the_others_have_not(tmp_path, extractor):
    calm = Image.new("RGB", (64, 64), (124, 116, 104))  # the mean of the normalization, so that its input is near zero
    loud = copy.deepcopy(extractor)
    with torch.no_grad():
        loud.get_submodule("conv_stem").weight *= 2e5
    assert all(map_.half().isfinite().all() for map_ in direct(loud, calm))
    for name, image in {"a.png": Image.new("RGB", (64, 64), "red"), "b.png": calm}.items():
        image.save(tmp_path / name)
    summary = extract([tmp_path], loud, tmp_path / "out", size=SIZE, dtype=torch.float16)
    assert list(summary.failed) == ["a.png"]
    assert "do not fit into torch.float16" in summary.failed["a.png"]
    halves = [map_.half() for map_ in in_order_of_names(loud, direct(loud, calm))]
    assert all(
        relative_difference(*pair) < 1e-3 for pair in zip(stored(tmp_path / "out")["b.png"], halves, strict=True)
    )


def test_an_image_whose_maps_are_not_numbers_has_failed(tmp_path, extractor):
    broken = copy.deepcopy(extractor)
    with torch.no_grad():
        broken.get_submodule("conv_stem").weight[0, 0, 0, 0] = torch.nan
    summary = extract([paint(tmp_path / "in", 1)], broken, tmp_path / "out", size=SIZE)
    assert "infinite values or NaN" in summary.failed["0.png"]
