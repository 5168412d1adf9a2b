"""From image files to maps on disk: every row is its own image's, every file is whole, every failure is named."""

import copy
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise, relative_difference
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from skimage import data
from timm.data import create_transform
from torch import Tensor, nn

import featx
from featx import ArgumentError, DataConfig, FeatureExtractWrapper, OutputError
from featx.extract import extract
from featx.extract import writer as writer_module
from featx.extract.batches import Batch, map_batches
from featx.extract.writer import MapsWriter

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
    """The maps (chs, h, w) of an image, without anything of featx.extract."""
    with torch.inference_mode():
        return [map_[0] for map_ in extractor(PREPARE(image)[None])]


def index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def stored(folder: Path) -> dict[str, list[Tensor]]:
    """The maps that the index names, by the name of their source's file."""
    shards = {path.name: list(load_file(path).items()) for path in folder.glob("*.safetensors")}
    rows = [row for row in index(folder) if row["status"] == "ok"]
    return {
        Path(row["source"]).name: [maps[int(row["row"])] for _, maps in sorted(shards[row["shard"]])] for row in rows
    }


def in_order_of_names(extractor: FeatureExtractWrapper, maps: list[Tensor]) -> list[Tensor]:
    return [
        map_ for _, map_ in sorted(zip(extractor.feature_info.names(), maps, strict=True), key=lambda pair: pair[0])
    ]


def assert_maps_are_of(extractor: FeatureExtractWrapper, maps: list[Tensor], image: Image.Image) -> None:
    for ours, reference in zip(maps, in_order_of_names(extractor, direct(extractor, image)), strict=True):
        assert relative_difference(ours, reference) < CLOSE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def paint(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir()
    for number, colour in enumerate(COLOURS[:count]):
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
    return folder


def interrupt_after(files: int):
    def progress(done: int, total: int) -> None:
        if done >= files:
            raise KeyboardInterrupt

    return progress


class FullDisk:
    """Stands for safetensors' save_file on a disk that takes `room` files more."""

    def __init__(self, room: int, error: BaseException) -> None:
        self.room, self.error, self.save = room, error, writer_module.save_file

    def __call__(self, tensors, path, metadata) -> None:
        if self.room == 0:
            path.write_bytes(b"the first few byt")
            raise self.error
        self.room -= 1
        self.save(tensors, path, metadata)


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
def test_rows_belong_to_their_sources_across_shards_and_bad_files(
    tmp_path, extractor, photographs, monkeypatch, batch_size
):
    for name in ("aa.jpg", "cc.jpg", "ff.jpg"):
        (photographs / name).write_text("no image")
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    summary = extract([photographs], extractor, tmp_path / "out", size=SIZE, batch_size=batch_size)
    assert len(summary.shards) == {1: 6, 2: 4, 3: 3, 16: 1}[batch_size]
    maps = stored(tmp_path / "out")
    assert sorted(maps) == [f"{name}.png" for name in "abcdef"]
    for name, image_maps in maps.items():
        assert_maps_are_of(extractor, image_maps, Image.open(photographs / name))


def test_the_size_of_a_batch_does_not_change_maps(tmp_path, extractor, photographs):
    for batch_size in (1, 5):
        extract([photographs], extractor, tmp_path / f"{batch_size}", size=SIZE, batch_size=batch_size)
    one, five = stored(tmp_path / "1"), stored(tmp_path / "5")
    assert all(relative_difference(*pair) < CLOSE for name in one for pair in zip(one[name], five[name], strict=True))


def test_a_shard_is_written_once_it_is_full(tmp_path, extractor, monkeypatch):
    paint(tmp_path / "in", 7)
    one_image = sum(map_.nbytes for map_ in direct(extractor, Image.new("RGB", (64, 64))))
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 3 * one_image)
    extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=1)
    assert [row["shard"] for row in index(tmp_path / "out")] == [
        f"maps-0000{number}.safetensors" for number in (0, 0, 0, 1, 1, 1, 2)
    ]
    assert [row["row"] for row in index(tmp_path / "out")] == ["0", "1", "2", "0", "1", "2", "0"]


def test_a_shard_names_its_levels_and_its_sources(tmp_path, extractor, photographs):
    summary = extract([photographs], extractor, tmp_path / "out", size=SIZE)
    with safe_open(summary.shards[0], "pt") as shard:
        assert sorted(shard.keys()) == sorted(extractor.feature_info.names())
        assert json.loads(shard.metadata()["sources"]) == [str(photographs / f"{name}.png") for name in "abcdef"]


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
    shard = "maps-00000.safetensors"
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


def test_the_index_has_a_line_per_image_with_its_place_and_size(tmp_path, extractor):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    extract([tmp_path / "a.png", tmp_path / "b.png"], extractor, tmp_path / "out", size=SIZE)
    lines = sorted((tmp_path / "out/index.csv").read_text().splitlines())
    assert lines == sorted(
        [
            "source,status,shard,row,width,height,reason",
            f"{tmp_path}/a.png,ok,maps-00000.safetensors,0,30,20,",
            f"{tmp_path}/b.png,failed,,,,,not an image in any format that Pillow reads",
        ]
    )


def test_the_size_in_the_index_is_that_of_the_upright_image(tmp_path, extractor):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    extract([tmp_path / "a.jpg"], extractor, tmp_path / "out", size=SIZE)
    assert [(row["width"], row["height"]) for row in index(tmp_path / "out")] == [("20", "30")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_of_any_bytes_is_recorded_as_it_is(tmp_path, extractor):
    source = os.fsencode(tmp_path) + b'/\xff,"\n.png'
    with open(source, "wb") as file:
        Image.new("RGB", (64, 64)).save(file, "PNG")
    extract([os.fsdecode(source)], extractor, tmp_path / "out", size=SIZE)
    with (tmp_path / "out/index.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [os.fsencode(row["source"]) for row in csv.DictReader(file)] == [source]


def test_the_description_says_levels_precision_preprocessing_and_versions(tmp_path, extractor):
    made_by = {"model": "mobilenetv3_small_050", "weights": "random"}
    extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", size=SIZE, made_by=made_by, dtype=torch.float16)
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert meta["levels"] == [
        {"chs": level.chs, "reduction": level.reduction, "name": level.name} for level in extractor.feature_info
    ]
    assert {key: meta[key] for key in ("model", "weights", "dtype")} == {**made_by, "dtype": "float16"}
    assert meta["preprocessing"] == {
        "size": [SIZE, SIZE],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop": 0.875,
    }
    assert meta["versions"]["torch"] == torch.__version__


def test_the_summary_counts_images_files_and_bytes(tmp_path, extractor, monkeypatch):
    paint(tmp_path / "in", 5)
    (tmp_path / "in/9.png").write_text("no image")
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    summary = extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=2)
    assert summary.written == 5
    assert list(summary.failed) == [tmp_path / "in/9.png"]
    assert summary.shards == sorted((tmp_path / "out").glob("*.safetensors"))
    assert summary.nbytes == sum(os.path.getsize(shard) for shard in summary.shards)


def test_progress_is_told_after_every_batch(tmp_path, extractor):
    paint(tmp_path / "in", 4)
    (tmp_path / "in/9.png").write_text("no image")
    told = []
    extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=2, progress=lambda *n: told.append(n))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_files_have_the_permissions_of_any_new_file(tmp_path, extractor):
    extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", size=SIZE)
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {usual}


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
    "empty.png": "not an image",
    "float.tiff": "floating-point pixels have no agreed range",
    "strip.png": "1000x9 pixels: one side is more than 100 times the other",
}


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_file_that_is_an_image_is_extracted_as_the_picture_it_shows(odd, extractor, name):
    assert_maps_are_of(extractor, stored(odd / "out")[name], GOOD[name](odd / "in"))


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_shown_is_recorded_with_the_reason(odd, name):
    (line,) = [row for row in index(odd / "out") if Path(row["source"]).name == name]
    assert BAD[name] in line["reason"]
    assert (line["status"], line["shard"], line["row"]) == ("failed", "", "")


def test_every_image_of_a_folder_has_one_line_and_nothing_else_has(odd):
    assert sorted(Path(row["source"]).name for row in index(odd / "out")) == sorted([*GOOD, *BAD])


def test_bad_files_leave_no_trace_but_their_lines(odd):
    assert names(odd / "out") == ["index.csv", "maps-00000.safetensors", "meta.json"]
    assert len(load_file(odd / "out/maps-00000.safetensors")["act1"]) == len(GOOD)


def test_if_all_files_are_bad_there_is_an_index_and_no_shard(tmp_path, extractor):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    summary = extract([tmp_path], extractor, tmp_path / "out", size=SIZE)
    assert (summary.written, len(summary.failed), summary.shards, summary.nbytes) == (0, 2, [], 0)
    assert names(tmp_path / "out") == ["index.csv", "meta.json"]
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
    assert list(summary.failed) == [tmp_path / "a.png"]
    assert "do not fit into torch.float16" in summary.failed[tmp_path / "a.png"]
    halves = [map_.half() for map_ in in_order_of_names(loud, direct(loud, calm))]
    assert all(
        relative_difference(*pair) < 1e-3 for pair in zip(stored(tmp_path / "out")["b.png"], halves, strict=True)
    )


def test_an_image_whose_maps_are_not_numbers_has_failed(tmp_path, extractor):
    broken = copy.deepcopy(extractor)
    with torch.no_grad():
        broken.get_submodule("conv_stem").weight[0, 0, 0, 0] = torch.nan
    summary = extract([paint(tmp_path / "in", 1)], broken, tmp_path / "out", size=SIZE)
    assert "infinite values or NaN" in summary.failed[tmp_path / "in/0.png"]


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


@pytest.mark.parametrize("held", ["index.csv", ".hidden", "folder/file"])
def test_a_folder_that_holds_anything_is_refused_and_left_as_it_is(tmp_path, extractor, held):
    (tmp_path / "out" / held).parent.mkdir(parents=True)
    (tmp_path / "out" / held).write_text("mine")
    first = held.split("/")[0]
    with pytest.raises(OutputError, match=rf"out is not empty \({first}\): name a new folder"):
        extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out")
    assert names(tmp_path / "out") == [first]
    assert (tmp_path / "out" / held).read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path, extractor):
    (tmp_path / "out").mkdir()
    assert extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", size=SIZE).written == 1


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, extractor):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write to .*file/out: "):
        extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "file/out")


def test_a_file_is_no_folder_for_maps(tmp_path, extractor):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot write to .*file: "):
        extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_refused_before_the_model_runs(tmp_path, extractor, monkeypatch):
    def refuse(path: Path, *_, **__) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*out/.*Permission denied"):
        MapsWriter(tmp_path / "out", extractor.feature_info, {})


# what an end in the middle leaves


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_is_an_error_that_leaves_no_part_of_a_file(tmp_path, extractor, monkeypatch, error):
    monkeypatch.setattr(writer_module, "save_file", FullDisk(0, error))
    with pytest.raises(OutputError, match=r"cannot write .*maps-00000\.safetensors: .*No space left"):
        extract([paint(tmp_path / "in", 2)], extractor, tmp_path / "out", size=SIZE)
    assert names(tmp_path / "out") == ["index.csv", "meta.json"]
    assert index(tmp_path / "out") == []


def test_when_the_disk_is_full_the_index_names_the_shards_before(tmp_path, extractor, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(writer_module, "save_file", FullDisk(2, OSError(28, "No space left on device")))
    paint(tmp_path / "in", 7)
    with pytest.raises(OutputError, match=r"cannot write .*maps-00002\.safetensors: .*No space left"):
        extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=2)
    assert names(tmp_path / "out") == ["index.csv", "maps-00000.safetensors", "maps-00001.safetensors", "meta.json"]
    assert sorted(stored(tmp_path / "out")) == ["0.png", "1.png", "2.png", "3.png"]


def test_an_interruption_leaves_whole_shards_and_their_index(tmp_path, extractor):
    paint(tmp_path / "in", 7)
    with pytest.raises(KeyboardInterrupt):
        extract([tmp_path / "in"], extractor, tmp_path / "out", size=SIZE, batch_size=2, progress=interrupt_after(4))
    assert names(tmp_path / "out") == ["index.csv", "maps-00000.safetensors", "meta.json"]
    maps = stored(tmp_path / "out")
    assert sorted(maps) == ["0.png", "1.png", "2.png", "3.png"]
    for number in range(4):
        assert_maps_are_of(extractor, maps[f"{number}.png"], Image.new("RGB", (64, 64), COLOURS[number]))


def test_an_interruption_while_a_shard_is_written_leaves_no_part_of_it(tmp_path, extractor, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(writer_module, "save_file", FullDisk(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        extract([paint(tmp_path / "in", 4)], extractor, tmp_path / "out", size=SIZE, batch_size=2)
    assert names(tmp_path / "out") == ["index.csv", "maps-00000.safetensors", "meta.json"]
    assert sorted(stored(tmp_path / "out")) == ["0.png", "1.png"]


def test_a_model_that_fails_in_the_middle_leaves_what_came_before(tmp_path, extractor):
    calls = []
    failing = copy.deepcopy(extractor)

    def fail(*_) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    failing.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        extract([paint(tmp_path / "in", 4)], failing, tmp_path / "out", size=SIZE, batch_size=2)
    assert sorted(stored(tmp_path / "out")) == ["0.png", "1.png"]


# the engine and the writer alone


def test_batches_hold_as_many_files_as_asked_in_their_order(tmp_path, extractor):
    paths = sorted(paint(tmp_path / "in", 5).iterdir())
    paths.insert(1, tmp_path / "lost.png")
    batches = list(map_batches(extractor, paths, PREPARE, batch_size=3, dtype=torch.float32))
    assert [batch.sources for batch in batches] == [[paths[0], paths[2]], paths[3:]]
    assert [list(batch.failed) for batch in batches] == [[paths[1]], []]
    assert [[len(maps) for maps in batch.maps] for batch in batches] == [[2] * 5, [3] * 5]


def test_a_batch_of_bad_files_has_no_maps(tmp_path, extractor):
    (batch,) = map_batches(extractor, [tmp_path / "lost.png"], PREPARE, batch_size=3, dtype=torch.float32)
    assert (batch.sources, batch.sizes, batch.maps) == ([], [], [])


def test_while_a_shard_fills_nothing_of_it_is_on_disk(tmp_path):
    levels = featx.Levels([featx.FeatureInfo(2, 4, "stem")])
    with MapsWriter(tmp_path / "out", levels, {}) as maps_writer:
        maps_writer.add(Batch([Path("a.png")], [(4, 4)], [torch.ones(1, 2, 1, 1)]))
        assert names(tmp_path / "out") == ["meta.json"]
    assert load_file(tmp_path / "out/maps-00000.safetensors")["stem"].tolist() == [[[[1.0]], [[1.0]]]]


def test_a_writer_that_was_given_nothing_leaves_an_index_without_lines(tmp_path):
    with MapsWriter(tmp_path / "out", featx.Levels([featx.FeatureInfo(2, 4, "stem")]), {"model": "none"}):
        pass
    assert index(tmp_path / "out") == []
    assert json.loads((tmp_path / "out/meta.json").read_text()) == {"model": "none"}


def test_a_size_the_model_does_not_take_is_refused_before_anything_is_written(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    backbone = featx.create_model("mobilenetv3_small_050", features_only=True).eval()
    with pytest.raises(featx.InputError, match="16x16 pixels are smaller than one cell"):
        extract([tmp_path / "a.png"], backbone, tmp_path / "out", size=16)
    assert not (tmp_path / "out").exists()
