"""Records of an extraction: its index, description, summary and progress."""

import json
import os
import sys

import pytest
import torch
from conftest import random_extractor
from PIL import Image
from support.extraction import SIZE, index, names, paint

import featx
from featx import FeatureExtractWrapper, extract


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050")


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
        "crop_mode": "center",
        "channel_order": "rgb",
        "crop_rounding": "nearest",
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


def test_progress_is_reported_after_every_batch_and_every_file(tmp_path, extractor):
    paint(tmp_path / "in", 4)
    (tmp_path / "in/9.png").write_text("no image")
    told = []
    extract(tmp_path / "in", extractor, tmp_path / "out", size=SIZE, batch_size=2, progress=told.append)
    counts = [(one.written, one.failed, one.total) for one in told]
    assert (counts[0], counts[-1]) == ((0, 0, 5), (4, 1, 5))
    assert counts == sorted(counts)
    assert (2, 0, 5) in counts
    assert [one.shard.written for one in told if one.shard is not None] == [4]


def test_files_have_the_permissions_of_any_new_file(tmp_path, extractor):
    extract([paint(tmp_path / "in", 1)], extractor, tmp_path / "out", size=SIZE)
    (tmp_path / "other").touch()
    usual = (tmp_path / "other").stat().st_mode
    assert {(tmp_path / "out" / name).stat().st_mode for name in names(tmp_path / "out")} == {usual}
