"""featx extract --format: maps in the format of another program, as soon as they are made."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from featx import FeatureDataset, FeatxError
from featx.cli import app

MODEL = ("--model", "mobilenetv3_small_050", "--random-weights", "0", "--size", "32", "--out-indices", "1")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 9, 9)).save(folder / f"{number}.png")
    return folder


def invoke(images: Path, out: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["extract", str(images), *MODEL, "--out", str(out), *words])


def test_maps_are_written_in_the_format_too_beside_their_folder(tmp_path, images):
    done = invoke(images, tmp_path / "maps", "--format", "npy")
    assert done.exit_code == 0
    assert done.stdout.endswith(f"\n{tmp_path}/maps.npy: 3 images as npy\n")
    maps = np.load(tmp_path / "maps.npy/blocks.0.npy")
    np.testing.assert_array_equal(maps, [one.maps["blocks.0"] for one in FeatureDataset(tmp_path / "maps")])


def test_a_folder_that_is_done_is_written_in_another_format(tmp_path, images):
    invoke(images, tmp_path / "maps", "--pooling", "mean")
    done = invoke(images, tmp_path / "maps", "--pooling", "mean", "--format", "parquet", "--log", "json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["summary", "converted"]
    assert lines[1] == {"event": "converted", "path": f"{tmp_path}/maps.parquet", "images": 3, "format": "parquet"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("zarr --shard 0/2", "--format zarr writes all images: when all jobs are done, use featx convert"),
        ("npy --keep-aspect", "--format npy takes maps of one shape, not those of --keep-aspect: use webdataset"),
        ("parquet", "--format parquet takes vectors, not maps: add --pooling mean, or choose npy or zarr"),
        ("npy", "maps.npy exists: name a new one, or remove it"),
    ],
)
def test_what_would_stop_it_at_the_end_is_reported_before_anything_is_done(tmp_path, images, words, told):
    (tmp_path / "maps.npy").touch()
    done = invoke(images, tmp_path / "maps", "--format", *words.split())
    assert isinstance(done.exception, FeatxError)
    assert told in str(done.exception)
    assert not (tmp_path / "maps").exists()
