"""featx probe: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.cli import runner

import featx

MODEL = ("--model", "mobilenetv3_small_050", "--random-weights", "0", "--size", "64", "--device", "cpu")
FAST = ("--folds", "2", "--neighbors", "1", "--tasks", "knn,linear,rank,cka")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `featx probe` within this process."""
    return runner(monkeypatch, capsys, "probe")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for offset, name in ((0, "dark"), (150, "bright")):
        (folder / name).mkdir()
        for number in range(3):
            pixels = rng.integers(offset, offset + 100, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "maps"
    extractor = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[1, 3]).eval()
    featx.extract(images, extractor, folder, size=64, name="small")
    return folder


def test_scores_are_printed_and_written(run, images, tmp_path):
    report, picture = tmp_path / "probe.json", tmp_path / "probe.png"
    ran = run(images, *MODEL, *FAST, "--out-indices", "1,-1", "--out", report, "--picture", picture)
    assert ran.status == 0, ran.err
    saved = json.loads(report.read_text())
    for row in saved["rows"]:
        (line,) = [line for line in ran.out.splitlines() if line.strip().startswith(f"{row['level']} ")]
        knn = row["scores"]["knn"]
        percent = f"{100 * knn['value']:.1f} ±{50 * (knn['high'] - knn['low']):.1f}"
        assert line.split()[:3] == [row["level"], str(row["chs"]), str(row["reduction"])]
        assert percent + "*" * ("knn" in row["best"]) in line
        assert f"{row['scores']['rank']['value']:.1f} ±" in line
    assert "6 images of 2 classes; kNN, linear, mIoU and PCK in percent" in ran.out
    assert f"{saved['cka'][0][1]['value']:.2f}" in ran.out
    with Image.open(picture) as chart:
        assert chart.format == "PNG"


def test_folders_of_maps_are_compared(run, stored):
    ran = run(stored, stored, *FAST, "--out-indices", "blocks.3")
    assert ran.status == 0, ran.err
    assert {"small", "small (2)"} <= {line.strip() for line in ran.out.splitlines()}
    assert "1.00" in ran.out


def test_tasks_that_are_not_possible_are_listed(run, stored):
    ran = run(stored, "--folds", "2", "--neighbors", "1")
    assert "not measured: segmentation: it needs masks" in ran.out
    assert "not measured: correspondence: stored maps are of unchanged images" in ran.out


def test_cka_of_many_levels_is_written_instead_of_printed(run, images):
    several = ("--model", ",".join(["mobilenetv3_small_050"] * 4), *MODEL[2:])
    ran = run(images, *several, "--tasks", "cka,rank")
    assert ran.status == 0, ran.err
    assert "CKA of 20 levels: written by --out FILE.json" in ran.out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), r"is not a folder that featx extract wrote: add --model NAME to compute maps of images"),
        ((*MODEL, "--out", "a.txt"), "a.txt: name a report that ends with .json or .csv"),
        ((*MODEL, "--picture", "a.txt"), "a.txt: name a picture that ends with one of"),
        ((*MODEL, "--mask-classes", "3"), "--mask-classes counts the classes of masks: add --masks DIR"),
        (("--model", "a,b", "--checkpoint-path", "w.pt"), "one --checkpoint-path does not fit several models"),
        ((*MODEL, "--out-indices", "layer9"), "layer9"),
        (("photos", *MODEL), "2 inputs of images: name the one folder that has a folder per class, such as that above"),
        ((*MODEL, "--neighbors", "9"), "neighbors=9: the classifier learns from 4 images"),
    ],
)
def test_mistakes_are_refused(run, images, words, error):
    ran = run(images, *words)
    assert ran.status == 2
    assert error in ran.err


def test_options_of_models_are_refused_for_stored_maps(run, stored):
    ran = run(stored, "--size", "64")
    assert (ran.status, "--size, --checkpoint-path and --random-weights are for --model" in ran.err) == (2, True)
    ran = run(stored, "--out-indices", "layer9")
    assert (ran.status, "layer9" in ran.err) == (2, True)


def test_one_reason_for_several_tasks_is_printed_once(run, images, tmp_path):
    """Images in one folder, with masks of their left and right halves."""
    mask = Image.fromarray(np.repeat([[0, 1]], 20, 1).repeat(40, 0).astype(np.uint8))
    for number in range(3):
        mask.save(tmp_path / f"{number}.png")
    ran = run(images / "dark", "--masks", tmp_path, *MODEL, "--out-indices", "1")
    assert ran.status == 0, ran.err
    assert "mIoU" in ran.out
    assert "not measured: knn, linear: 3 of 3 images have no label, such as '0.png'" in ran.out
