"""From image files to maps on disk: each row belongs to its image, and each file is whole."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import random_extractor, relative_difference
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from skimage import data
from support.extraction import CLOSE, SIZE, assert_maps_are_of, direct, in_order_of_names, index, paint, stored
from torch import Tensor, nn

import featx
from featx import ArgumentError, DataConfig, FeatureExtractWrapper, extract
from featx.bulk import extraction as extraction_module

SHARD = "maps-000000.safetensors"


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A folder of six photographs of different sizes."""
    scenes = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.retina()[::4, ::4],
        data.immunohistochemistry(),
    ]
    folder = tmp_path_factory.mktemp("photographs")
    for name, scene in zip("abcdef", scenes, strict=True):
        Image.fromarray(scene).resize((80 + 8 * ord(name) % 32, 72)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory, extractor, photographs) -> Path:
    """The folder that the photographs were extracted to, all in one batch."""
    folder = tmp_path_factory.mktemp("maps")
    extract(photographs, extractor, folder, size=SIZE)
    return folder


# what is stored


def test_every_row_holds_the_maps_of_its_own_image(extractor, photographs, maps):
    assert sorted(stored(maps)) == [f"{name}.png" for name in "abcdef"]
    for name, image_maps in stored(maps).items():
        assert_maps_are_of(extractor, image_maps, Image.open(photographs / name))


def test_maps_of_different_photographs_differ_by_more_than_the_tolerance(extractor, photographs):
    maps = [in_order_of_names(extractor, direct(extractor, Image.open(path))) for path in sorted(photographs.iterdir())]
    for one in range(len(maps)):
        for other in range(one):
            assert all(relative_difference(*pair) > 100 * CLOSE for pair in zip(maps[one], maps[other], strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_rows_belong_to_their_sources_across_shards_and_bad_files(tmp_path, extractor, photographs, batch_size):
    folder = shutil.copytree(photographs, tmp_path / "in")
    for name in ("aa.jpg", "cc.jpg", "ff.jpg"):
        (folder / name).write_text("no image")
    summary = extract(folder, extractor, tmp_path / "out", size=SIZE, batch_size=batch_size, rows_per_shard=4)
    assert len(summary.shards) == 3
    maps = stored(tmp_path / "out")
    assert sorted(maps) == [f"{name}.png" for name in "abcdef"]
    for name, image_maps in maps.items():
        assert_maps_are_of(extractor, image_maps, Image.open(photographs / name))


def test_files_hold_as_many_images_as_fill_the_bytes_allowed_in_whole_batches(tmp_path, extractor, monkeypatch):
    paint(tmp_path / "in", 7)
    one_image = sum(map_.nbytes for map_ in direct(extractor, Image.new("RGB", (64, 64))))
    for allowed, batch_size, expected in ((3, 1, [3, 3, 1]), (5, 2, [4, 3]), (3, 16, [3, 3, 1]), (0.5, 1, [1] * 7)):
        monkeypatch.setattr(extraction_module, "SHARD_BYTES", int(allowed * one_image))
        out = tmp_path / f"{allowed}-{batch_size}"
        summary = extract([tmp_path / "in"], extractor, out, size=SIZE, batch_size=batch_size)
        assert [len(load_file(shard)["act1"]) for shard in summary.shards] == expected
        assert [row["row"] for row in index(out)] == [row for rows in expected for row in range(rows)]


def test_a_file_names_its_levels_and_its_sources(extractor, photographs, maps):
    with safe_open(maps / SHARD, "pt") as shard:
        assert sorted(shard.keys()) == sorted(extractor.feature_info.names())
        header = json.loads(shard.metadata()["featx"])
    assert header["ids"] == [f"{name}.png" for name in "abcdef"]
    assert header["sources"] == [str(photographs / f"{name}.png") for name in "abcdef"]
    assert header["levels"] == extractor.feature_info.names()


def test_levels_are_stored_with_the_channels_and_sizes_that_feature_info_says(extractor, maps):
    tensors = load_file(maps / SHARD)
    for level in extractor.feature_info:
        assert tensors[level.name].shape == (6, level.chs, SIZE // level.reduction, SIZE // level.reduction)


def test_only_the_levels_asked_for_are_stored(tmp_path):
    deepest_first = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[3, 1]).eval()
    summary = extract([paint(tmp_path / "in", 2)], deepest_first, tmp_path / "out", size=SIZE)
    shapes = {name: tuple(map_.shape) for name, map_ in load_file(summary.shards[0]).items()}
    assert shapes == {"blocks.3": (2, 24, 4, 4), "blocks.0": (2, 8, 16, 16)}


def test_an_extractor_that_returns_a_dictionary_is_stored_alike(tmp_path, extractor, photographs, maps):
    by_name = featx.create_model("mobilenetv3_small_050", features_only=True, output="dict").eval()
    by_name.load_state_dict(extractor.state_dict())
    extract(photographs, by_name, tmp_path / "out", size=SIZE)
    assert (tmp_path / "out" / SHARD).read_bytes() == (maps / SHARD).read_bytes()


def test_maps_of_half_precision_are_the_rounded_maps(tmp_path, extractor, photographs, maps):
    extract(photographs, extractor, tmp_path / "half", size=SIZE, dtype=torch.float16)
    half, single = stored(tmp_path / "half"), stored(maps)
    for name, rounded in half.items():
        assert all(torch.equal(*pair) for pair in zip(rounded, [map_.half() for map_ in single[name]], strict=True))


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


# refusals


def test_a_model_in_training_mode_is_refused(tmp_path, extractor):
    training = copy.deepcopy(extractor).train()
    with pytest.raises(ArgumentError, match=r"in training mode, where maps depend on the batch: call model\.eval"):
        extract([paint(tmp_path / "in", 1)], training, tmp_path / "out")
    assert not (tmp_path / "out").exists()
