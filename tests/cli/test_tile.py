"""`featx tile`: the files that it writes, its output, and its errors."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import featx
from featx.cli import app
from featx.tiling import ArrayWindows

pytest.importorskip("rasterio")


def run(*words):
    return CliRunner().invoke(app, ["tile", *map(str, words), "--random-weights", "0"])


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_maps_and_their_description_are_written(photo, tmp_path):
    done = run(photo, "--model", "resnet18", "--out-indices", "0,1", "--tile", "128", "--out", tmp_path / "maps")
    assert done.exit_code == 0, done.output
    assert "equal to those of the whole image" in done.stdout
    assert "layer1: 64 × 38 × 53, 4 pixels per cell" in done.stdout
    facts = json.loads((tmp_path / "maps/maps.json").read_text())
    assert [facts[key] for key in ("size", "weights", "is_exact")] == [[150, 210], "random, seed 0", True]
    assert [level["transform"] for level in facts["levels"]] == [[2, 0, 0, 0, 2, 0], [4, 0, 0, 0, 4, 0]]
    torch.manual_seed(0)
    extractor = featx.create_model("resnet18", features_only=True, out_indices=[0, 1]).eval()
    with torch.no_grad():
        windows = ArrayWindows(np.asarray(Image.open(photo)), extractor.data_config)
        expected = extractor(windows.read(0, 0, 150, 210)[None])
    for level, true in zip(facts["levels"], expected, strict=True):
        found = torch.from_numpy(np.load(tmp_path / "maps" / level["file"]))
        assert (level["name"], level["chs"]) in {("act1", 64), ("layer1", 64)}
        assert (found - true).abs().max() <= 1e-5 * true.abs().max()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlap", "half"], "--overlap half: expected auto or a number of pixels"),
        (["--bands", "red"], "--bands red: expected ints separated by commas"),
        (["--bands", "1,2,9"], "has 3 bands, got bands=[1, 2, 9]"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(photo, tmp_path, words, message):
    done = run(photo, "--model", "resnet18", "--out", tmp_path / "maps", *words)
    assert done.exit_code != 0
    assert message in str(done.exception)
    assert {path.name for path in tmp_path.iterdir()} <= {"photo.png"}
