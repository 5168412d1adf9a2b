"""From image files to maps on disk: every row is its own image's, every file is whole, every failure is named."""

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import randomise, relative_difference
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data
from timm.data import create_transform
from torch import Tensor, nn

import featx
from featx import ArgumentError, DataConfig, FeatureExtractWrapper, extract
from featx.bulk import run as run_module

SIZE = 64
PREPARE = create_transform(
    (3, SIZE, SIZE),
    interpolation="bicubic",
    crop_pct=0.875,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
# Convolutions of one image and of a batch may add in another order.
CLOSE = 1e-5
COLOURS = ["red", "lime", "blue", "white", "orange", "black", "purple"]


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    torch.manual_seed(0)
    return randomise(featx.create_model("mobilenetv3_small_050", features_only=True))


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of six photographs of different sizes."""
    scenes = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.retina()[::4, ::4],
        data.immunohistochemistry(),
    ]
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, scene in zip("abcdef", scenes, strict=True):
        Image.fromarray(scene).resize((80 + 8 * ord(name) % 32, 72)).save(folder / f"{name}.png")
    return folder


def direct(extractor: FeatureExtractWrapper, image: Image.Image) -> list[Tensor]:
    """The maps (chs, h, w) of an image, without anything of featx.bulk."""
    with torch.inference_mode():
        return [map_[0] for map_ in extractor(PREPARE(image)[None])]


def index(folder: Path) -> list[dict]:
    return pq.read_table(folder / "index.parquet").to_pylist()


def stored(folder: Path) -> dict[str, list[Tensor]]:
    """The maps that the index names, by the name of their source's file."""
    shards = {path.name: list(load_file(path).items()) for path in folder.glob("*.safetensors")}
    rows = [row for row in index(folder) if row["status"] == "ok"]
    return {Path(row["source"]).name: [maps[row["row"]] for _, maps in sorted(shards[row["shard"]])] for row in rows}


def in_order_of_names(extractor: FeatureExtractWrapper, maps: list[Tensor]) -> list[Tensor]:
    return [
        map_ for _, map_ in sorted(zip(extractor.feature_info.names(), maps, strict=True), key=lambda pair: pair[0])
    ]


def assert_maps_are_of(extractor: FeatureExtractWrapper, maps: list[Tensor], image: Image.Image) -> None:
    for ours, reference in zip(maps, in_order_of_names(extractor, direct(extractor, image)), strict=True):
        assert relative_difference(ours, reference) < CLOSE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def paint(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir()
    for number, colour in enumerate(COLOURS[:count]):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return folder


# what is stored


def test_every_row_holds_the_maps_of_its_own_image(tmp_path, extractor, photographs):
    extract([photographs], extractor, tmp_path / "out", size=SIZE, batch_size=4)
    maps = stored(tmp_path / "out")
    assert sorted(maps) == [f"{name}.png" for name in "abcdef"]
    for name, image_maps in maps.items():
        assert_maps_are_of(extractor, image_maps, Image.open(photographs / name))


def test_maps_of_different_photographs_differ_by_more_than_the_tolerance(extractor, photographs):
    maps = [in_order_of_names(extractor, direct(extractor, Image.open(path))) for path in sorted(photographs.iterdir())]
    for one in range(len(maps)):
        for other in range(one):
            assert all(relative_difference(*pair) > 100 * CLOSE for pair in zip(maps[one], maps[other], strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_rows_belong_to_their_sources_across_shards_and_bad_files(tmp_path, extractor, photographs, batch_size):
    for name in ("aa.jpg", "cc.jpg", "ff.jpg"):
        (photographs / name).write_text("no image")
    summary = extract([photographs], extractor, tmp_path / "out", size=SIZE, batch_size=batch_size, rows_per_shard=4)
    assert len(summary.shards) == 3
    maps = stored(tmp_path / "out")
    assert sorted(maps) == [f"{name}.png" for name in "abcdef"]
    for name, image_maps in maps.items():
        assert_maps_are_of(extractor, image_maps, Image.open(photographs / name))


def test_the_size_of_a_batch_does_not_change_maps(tmp_path, extractor, photographs):
    for batch_size in (1, 5):
        extract([photographs], extractor, tmp_path / f"{batch_size}", size=SIZE, batch_size=batch_size)
    one, five = stored(tmp_path / "1"), stored(tmp_path / "5")
    assert all(relative_difference(*pair) < CLOSE for name in one for pair in zip(one[name], five[name], strict=True))


def test_files_hold_as_many_images_as_fill_the_bytes_allowed_in_whole_batches(tmp_path, extractor, monkeypatch):
    paint(tmp_path / "in", 7)
    one_image = sum(map_.nbytes for map_ in direct(extractor, Image.new("RGB", (64, 64))))
    for allowed, batch_size, expected in ((3, 1, [3, 3, 1]), (5, 2, [4, 3]), (3, 16, [3, 3, 1]), (0.5, 1, [1] * 7)):
        monkeypatch.setattr(run_module, "SHARD_BYTES", int(allowed * one_image))
        out = tmp_path / f"{allowed}-{batch_size}"
        summary = extract([tmp_path / "in"], extractor, out, size=SIZE, batch_size=batch_size)
        assert [len(load_file(shard)["act1"]) for shard in summary.shards] == expected
        assert [row["row"] for row in index(out)] == [row for rows in expected for row in range(rows)]


def test_a_file_names_its_levels_and_its_sources(tmp_path, extractor, photographs):
    summary = extract([photographs], extractor, tmp_path / "out", size=SIZE)
    with safe_open(summary.shards[0], "pt") as shard:
        assert sorted(shard.keys()) == sorted(extractor.feature_info.names())
        header = json.loads(shard.metadata()["featx"])
    assert header["ids"] == [f"{name}.png" for name in "abcdef"]
    assert header["sources"] == [str(photographs / f"{name}.png") for name in "abcdef"]
    assert header["levels"] == extractor.feature_info.names()


def test_levels_are_stored_with_the_channels_and_sizes_that_feature_info_says(tmp_path, extractor, photographs):
    summary = extract([photographs], extractor, tmp_path / "out", size=SIZE)
    maps = load_file(summary.shards[0])
    for level in extractor.feature_info:
        assert maps[level.name].shape == (6, level.chs, SIZE // level.reduction, SIZE // level.reduction)


def test_only_the_levels_asked_for_are_stored(tmp_path):
    deepest_first = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[3, 1]).eval()
    summary = extract([paint(tmp_path / "in", 2)], deepest_first, tmp_path / "out", size=SIZE)
    shapes = {name: tuple(map_.shape) for name, map_ in load_file(summary.shards[0]).items()}
    assert shapes == {"blocks.3": (2, 24, 4, 4), "blocks.0": (2, 8, 16, 16)}


def test_an_extractor_that_returns_a_dictionary_is_stored_alike(tmp_path, extractor, photographs):
    by_name = featx.create_model("mobilenetv3_small_050", features_only=True, output="dict", out_indices=[4, 0]).eval()
    listed = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[4, 0]).eval()
    by_name.load_state_dict(listed.state_dict())
    for name, model in (("dict", by_name), ("list", listed)):
        extract([photographs], model, tmp_path / name, size=SIZE)
    shard = "maps-000000.safetensors"
    assert (tmp_path / "dict" / shard).read_bytes() == (tmp_path / "list" / shard).read_bytes()


def test_maps_of_half_precision_are_the_rounded_maps(tmp_path, extractor, photographs):
    extract([photographs], extractor, tmp_path / "half", size=SIZE, dtype=torch.float16)
    extract([photographs], extractor, tmp_path / "single", size=SIZE)
    half, single = stored(tmp_path / "half"), stored(tmp_path / "single")
    for name, maps in half.items():
        assert all(torch.equal(*pair) for pair in zip(maps, [map_.half() for map_ in single[name]], strict=True))


def test_without_a_size_images_are_as_the_weights_expect(tmp_path, extractor):
    summary = extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out")
    assert load_file(summary.shards[0])["blocks.5"].shape[2:] == (7, 7)


def test_a_model_without_parameters_is_extracted(tmp_path):
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(2)
            self.feature_info = [{"chs": 3, "reduction": 2, "name": "pool"}]
            self.data_config = DataConfig((8, 8), mean=(0, 0, 0), std=(1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x)

    summary = extract([paint(tmp_path / "in", 1)], FeatureExtractWrapper(Halves()).eval(), tmp_path / "out")
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 4)
    assert torch.equal(load_file(summary.shards[0])["pool"], red)


# what is recorded


def test_the_index_has_a_row_per_image_with_its_place_shapes_and_size(tmp_path):
    deepest = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[4, 1]).eval()
    (tmp_path / "in").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_text("no image")
    extract(tmp_path / "in", deepest, tmp_path / "out", size=SIZE)
    assert index(tmp_path / "out") == [
        {
            "id": "a.png",
            "source": f"{tmp_path}/in/a.png",
            "shard": "maps-000000.safetensors",
            "row": 0,
            "shape of blocks.5": [288, 2, 2],
            "shape of blocks.0": [8, 16, 16],
            "width": 30,
            "height": 20,
            "status": "ok",
            "error": None,
        },
        {
            "id": "b.png",
            "source": f"{tmp_path}/in/b.png",
            "shard": None,
            "row": None,
            "shape of blocks.5": None,
            "shape of blocks.0": None,
            "width": None,
            "height": None,
            "status": "failed",
            "error": "not an image in any format that Pillow reads",
        },
    ]


def test_the_size_in_the_index_is_that_of_the_upright_image(tmp_path, extractor):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    extract([tmp_path / "a.jpg"], extractor, tmp_path / "out", size=SIZE)
    assert [(row["width"], row["height"]) for row in index(tmp_path / "out")] == [(20, 30)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_of_any_bytes_is_recorded_as_it_is(tmp_path, extractor):
    source = os.fsencode(tmp_path) + b'/\xff,"\n.png'
    with open(source, "wb") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
    extract([os.fsdecode(source)], extractor, tmp_path / "out", size=SIZE)
    (row,) = index(tmp_path / "out")
    written = '\\xff,"\n.png'  # what is no text cannot be in a table; the rest is as it was
    assert (row["id"], row["source"], row["status"]) == (written, f"{tmp_path}/{written}", "ok")


def test_the_description_says_levels_precision_preprocessing_and_versions(tmp_path, extractor):
    recorded = {"weights": "random", "batch_size": "mine"}
    paint(tmp_path / "in", 1)
    extract(
        tmp_path / "in", extractor, tmp_path / "out", size=SIZE, dtype=torch.float16, name="mine", recorded=recorded
    )
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    decided = meta["decided"]
    assert decided["levels"] == [
        {"chs": level.chs, "reduction": level.reduction, "name": level.name, "pooling": "none"}
        for level in extractor.feature_info
    ]
    assert (decided["model"], decided["dtype"], decided["size"]) == ("mine", "float16", 64)
    assert decided["preprocessing"] == {
        "size": [224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop": 0.875,
    }
    assert meta["recorded"]["versions"]["torch"] == torch.__version__
    assert (meta["recorded"]["weights"], meta["recorded"]["device"]) == ("random", "cpu")


def test_the_summary_counts_images_files_and_bytes(tmp_path, extractor):
    paint(tmp_path / "in", 5)
    (tmp_path / "in/9.png").write_text("no image")
    summary = extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=2, rows_per_shard=2)
    assert (summary.written, summary.made, summary.left) == (5, 3, 0)
    assert summary.failed == {"9.png": "not an image in any format that Pillow reads"}
    assert summary.shards == sorted((tmp_path / "out").glob("*.safetensors"))
    assert summary.nbytes == sum(os.path.getsize(shard) for shard in summary.shards)


def test_progress_is_told_after_every_batch_and_every_file(tmp_path, extractor):
    paint(tmp_path / "in", 4)
    (tmp_path / "in/9.png").write_text("no image")
    told = []
    extract(tmp_path / "in", extractor, tmp_path / "out", size=SIZE, batch_size=2, progress=told.append)
    counts = [(one.written, one.failed, one.total) for one in told]
    assert (counts[0], counts[-1]) == ((0, 0, 5), (4, 1, 5))
    assert counts == sorted(counts)
    assert [one.shard.written for one in told if one.shard is not None] == [4]


def test_files_have_the_permissions_of_any_new_file(tmp_path, extractor):
    extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", size=SIZE)
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    assert {(tmp_path / "out" / name).stat().st_mode for name in names(tmp_path / "out")} == {usual}


# bad images


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
    colours = data.astronaut()[:80, 200:300]
    photograph = Image.fromarray(colours)
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(folder / "upright.png")
    photograph.transpose(Image.Transpose.ROTATE_90).save(folder / "sideways.png", exif=exif)
    photograph.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(data.camera()[:64, :64].astype(np.uint16) * 257).save(folder / "gray16.png")
    Image.fromarray(data.camera()[:64, :64]).save(folder / "gray.png")
    clear = Image.fromarray(np.dstack([colours, np.where(colours[..., 0] > 128, 255, 0).astype(np.uint8)]))
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


def test_a_very_large_photograph_is_extracted(tmp_path, extractor):
    Image.new("L", (12_000, 12_000), 128).save(tmp_path / "a.jpg")
    extract([tmp_path / "a.jpg"], extractor, tmp_path / "out", size=SIZE)
    assert_maps_are_of(extractor, stored(tmp_path / "out")["a.jpg"], Image.new("RGB", (80, 80), (128, 128, 128)))


def test_a_file_that_is_no_image_by_its_ending_is_tried_when_named(tmp_path, extractor):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "scan.dat", format="PNG")
    extract([tmp_path / "scan.dat"], extractor, tmp_path / "out", size=SIZE)
    assert_maps_are_of(extractor, stored(tmp_path / "out")["scan.dat"], Image.new("RGB", (64, 64), "red"))


def test_an_image_whose_maps_exceed_float16_has_failed_and_the_others_have_not(tmp_path, extractor):
    calm = Image.new("RGB", (64, 64), (124, 116, 104))  # the mean of the normalisation, so that its input is near zero
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


# refusals


def test_a_model_in_training_mode_is_refused(tmp_path, extractor):
    training = copy.deepcopy(extractor).train()
    with pytest.raises(ArgumentError, match=r"in training mode, where maps depend on the batch: call model\.eval"):
        extract([paint(tmp_path / "in", 1)], training, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_images_is_refused(tmp_path, extractor, batch_size):
    with pytest.raises(ArgumentError, match=rf"batch_size={batch_size}: expected a positive number"):
        extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", batch_size=batch_size)


def test_a_size_the_model_does_not_take_is_refused_before_anything_is_written(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    backbone = featx.create_model("mobilenetv3_small_050", features_only=True).eval()
    with pytest.raises(featx.InputError, match="16x16 pixels are smaller than one cell"):
        extract([tmp_path / "a.png"], backbone, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()
