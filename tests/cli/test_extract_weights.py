"""`featx extract`: the weights that compute the maps."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.cli import NAME, SMALL
from support.cli import checkpoint as checkpoint
from support.cli import photographs as photographs
from support.cli import run as run

import featx

SHARD = "maps-000000.safetensors"


def test_extract_writes_the_maps_of_the_model_it_names(run, tmp_path, photographs, checkpoint):
    image = photographs / "astronaut.png"
    run("extract", image, "--model", NAME, "--checkpoint-path", checkpoint, "--size", "64", "--out", tmp_path / "out")
    extractor = featx.create_model(NAME, features_only=True, checkpoint_path=checkpoint).eval()
    with torch.inference_mode():
        expected = extractor(featx.transform(extractor, size=64)(Image.open(image))[None])
    stored = load_file(tmp_path / "out" / SHARD)
    for level, map_ in zip(extractor.feature_info, expected, strict=True):
        assert torch.equal(stored[level.name], map_)


def test_random_weights_are_the_same_for_the_same_seed(run, tmp_path, photographs):
    for out in ("one", "two"):
        run("extract", photographs, *SMALL, "--out", tmp_path / out)
    assert (tmp_path / "one" / SHARD).read_bytes() == (tmp_path / "two" / SHARD).read_bytes()


def test_random_weights_are_others_for_another_seed(run, tmp_path, photographs):
    for seed in ("0", "1"):
        words = ("--model", NAME, "--random-weights", seed, "--size", "64")
        run("extract", photographs, *words, "--out", tmp_path / seed)
    one, other = (load_file(tmp_path / seed / SHARD)["act1"] for seed in ("0", "1"))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("seed", ["-1", str(2**64), "x"])
def test_a_seed_that_is_none_is_an_error(run, tmp_path, photographs, seed):
    ran = run("extract", photographs, "--model", NAME, "--random-weights", seed, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "--random-weights" in ran.err


def test_a_checkpoint_is_named_as_the_weights(run, tmp_path, photographs, checkpoint):
    words = ("--model", NAME, "--checkpoint-path", checkpoint, "--size", "64")
    ran = run("extract", photographs, *words, "--out", tmp_path / "out")
    assert ran.status == 0
    assert f"weights: {checkpoint}; computed on cpu\n" in ran.out


def test_a_checkpoint_that_does_not_exist_is_an_error_that_names_it(run, tmp_path, photographs):
    lost = tmp_path / "lost.safetensors"
    ran = run("extract", photographs, "--model", NAME, "--checkpoint-path", lost, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: {lost} is not a file" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_an_error_that_names_it(run, tmp_path, photographs, checkpoint):
    words = ("--model", "mobilenetv3_small_075", "--checkpoint-path", checkpoint)
    ran = run("extract", photographs, *words, "--out", tmp_path / "out")
    assert ran.status == 2
    assert f"error: {checkpoint} does not fit" in ran.err


@pytest.mark.parametrize(
    "both",
    [
        ("--pretrained", "--checkpoint-path", "mine.pth"),
        ("--pretrained", "--random-weights", "0"),
        ("--checkpoint-path", "mine.pth", "--random-weights", "0"),
    ],
)
def test_weights_from_two_places_are_an_error(run, tmp_path, photographs, both):
    ran = run("extract", photographs, "--model", NAME, *both, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err == "error: --pretrained, --checkpoint-path and --random-weights exclude each other\n"


def test_a_model_without_published_weights_is_an_error_that_names_the_other_ways(run, tmp_path, photographs):
    ran = run("extract", photographs, "--model", "mobilenetv3_large_075", "--out", tmp_path / "out")
    assert ran.status == 2
    assert "error: mobilenetv3_large_075 has no published weights" in ran.err
    assert "(here: --checkpoint-path FILE or --random-weights SEED)" in ran.err
