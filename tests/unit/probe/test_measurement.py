"""`measure`: scores per model and level of stored and computed maps, and what it refuses."""

import csv
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import random_extractor
from PIL import Image

import featx
from featx import ArgumentError, FeatureInfo, ImageError, InputError, OutIndicesError, OutputError
from featx.bulk import Features
from featx.probe import ComputedMaps, ProbeOptions, Row, Score, StoredMaps, chart, measure
from featx.probe.labels import labels_of
from featx.probe.report import Report

FAST = ProbeOptions(folds=2, neighbors=1, pairs=2)


@dataclass
class GivenMaps:
    """Maps in memory: a level whose cells tell the class of their image, and one of noise."""

    ids: list[str] = field(default_factory=lambda: [f"{name}/{number}.png" for name in "ab" for number in range(6)])
    name: str = "given"
    levels: tuple[FeatureInfo, ...] = (FeatureInfo(4, 8, "class"), FeatureInfo(3, 8, "noise"))
    vectors: tuple[str, ...] = ()
    config: None = None
    value: float = 1.0

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        for id_ in reversed(self.ids):
            class_ = torch.randn(4, 2, 2, generator=generator) + 20 * self.value * (id_[0] == "a")
            yield Features(id_, {"class": class_, "noise": torch.randn(3, 2, 2, generator=generator)}, (16, 16))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Dark and bright images of noise, in a folder per class, and their masks beside them: the left and right half."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for offset, name in ((0, "dark"), (150, "bright")):
        for place in (folder / "images" / name, folder / "masks" / name):
            place.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(offset, offset + 100, (40, 40, 3), dtype=np.uint8)
            pixels[:, 20:, 0] = 0
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
            mask = np.repeat([[0, 1]], 20, 1).repeat(40, 0).astype(np.uint8)
            Image.fromarray(mask).save(folder / "masks" / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def extractor():
    return random_extractor("mobilenetv3_small_050", out_indices=[1, 3])


@pytest.fixture(scope="module")
def stored(images, extractor, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps") / "maps"
    featx.extract(images / "images", extractor, out, size=64, name="small")
    return out


@pytest.fixture(scope="module")
def report(images, extractor):
    source = ComputedMaps(images / "images", extractor, name="small", size=64, device="cpu")
    return measure([source], masks=images / "masks", options=FAST)


def test_a_level_that_tells_classes_apart_scores_above_noise():
    report = measure([GivenMaps()], options=FAST)
    assert [row.scores["knn"].value for row in report.rows] == [1, pytest.approx(0.5, abs=0.35)]
    assert report.rows[0].scores["linear"] == Score(1, 1, 1)
    assert report.best("knn") == [report.rows[0]]
    assert report.best("rank") == []
    assert report.tasks == ["knn", "linear", "rank"]
    assert list(report.omitted) == ["segmentation", "correspondence"]
    assert report.classes == ("a", "b")


def test_every_score_of_images_has_an_interval(report):
    assert report.tasks == ["knn", "linear", "segmentation", "correspondence", "rank"]
    for row in report.rows:
        for score in row.scores.values():
            assert score.low <= score.value <= score.high
    assert report.omitted == {}
    assert [row.level.chs for row in report.rows] == [8, 24]


def test_stored_maps_have_the_scores_of_computed_maps(report, stored, images):
    found = measure([StoredMaps(stored)], masks=images / "masks", options=FAST)
    assert [row.model for row in found.rows] == ["small", "small"]
    for row, other in zip(found.rows, report.rows, strict=True):
        assert row.level == other.level
        assert row.scores["rank"].value == pytest.approx(other.scores["rank"].value, rel=1e-3)  # batches are padded
        for task in ("knn", "linear", "segmentation"):
            assert row.scores[task].value == pytest.approx(other.scores[task].value, abs=0.02)
    assert found.cka[0][1].value == pytest.approx(report.cka[0][1].value, abs=1e-4)


def test_stored_vectors_have_no_segmentation(images, extractor, tmp_path):
    featx.extract(images / "images", extractor, tmp_path / "maps", size=64, pooling="mean")
    source = StoredMaps(tmp_path / "maps", [-1])
    assert measure([source], options=FAST).tasks == ["knn", "linear", "rank"]
    with pytest.raises(ArgumentError, match=r"'segmentation': it needs maps, and .* are vectors: extract with pooling"):
        measure([source], masks=images / "masks", tasks=["segmentation"], options=FAST)


def test_scores_do_not_depend_on_the_thread(images, extractor, report):
    source = ComputedMaps(images / "images", extractor, name="small", size=64, device="cpu")
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(measure, [source], tasks=["knn", "correspondence"], options=FAST) for _ in range(2)]
    first, second = (job.result() for job in jobs)
    assert first.as_json() == second.as_json()
    assert first.rows[0].scores["correspondence"] == report.rows[0].scores["correspondence"]


def test_models_of_one_name_are_numbered():
    report = measure([GivenMaps(), GivenMaps()], tasks=["knn", "cka"], options=FAST)
    assert [row.model for row in report.rows] == ["given", "given", "given (2)", "given (2)"]
    assert report.cka[0][2].value == pytest.approx(1)


def test_labels_of_a_csv_file_and_of_a_mapping(tmp_path):
    ids = [f"{number}.png" for number in range(4)]
    (tmp_path / "labels.csv").write_text(
        "path,label,note\n" + "".join(f"{id_},{i % 2},x\n" for i, id_ in enumerate(ids))
    )
    found = labels_of(ids, tmp_path / "labels.csv")
    assert (found.classes, found.indices.tolist()) == (("0", "1"), [0, 1, 0, 1])
    assert labels_of(ids, dict(zip(ids, "yxyx", strict=True))).indices.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,class\n0.png,a\n", r"the columns 'path', 'class' lack 'label': name both in the first row"),
        ("path,label\n0.png,\n", r"'0.png' has an empty label: fill it in, or remove the row"),
        ("path,label\n0.png,a\n0.png,b\n", r"'0.png' has the labels 'a' and 'b': keep one"),
        (
            "path,label\n0.png,a\n",
            r"1 of 2 images have no label, such as '1.png': the paths are those below",
        ),
        ("path,label\n0.png,a\n1.png,a\n", r"all images are of one class, 'a': a probe tells classes apart"),
        ("path,label\n0.png,a\n1.png,b\n", r"classes with one image, .*: 'a', 'b'; add images of them"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ArgumentError, match=words):
        labels_of(["0.png", "1.png"], tmp_path / "labels.csv")


def test_images_without_folders_and_absent_files_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"2 of 2 images have no label, .*: move each image into a folder named"):
        labels_of(["0.png", "1.png"])
    with pytest.raises(ArgumentError, match=r"expected a CSV file of path,label: FileNotFoundError"):
        labels_of(["0.png", "1.png"], tmp_path / "none.csv")


def one_class_masks(folder):
    for id_ in GivenMaps().ids:
        (folder / id_).parent.mkdir(exist_ok=True)
        Image.new("L", (16, 16)).save(folder / id_)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"tasks": ["nn"]},
            r"tasks 'nn': choose among 'knn', 'linear', 'segmentation', 'correspondence'",
        ),
        ({"tasks": ["segmentation"]}, r"task 'segmentation': it needs masks: pass a folder of PNG files"),
        ({"tasks": ["correspondence"]}, r"task 'correspondence': stored maps are of unchanged images"),
        ({"labels": {"a/0.png": "a"}}, r"11 of 12 images have no label"),
        ({"options": ProbeOptions(neighbors=99)}, r"neighbors=99: the classifier learns from 9 images"),
        ({"masks": "nowhere"}, r"masks nowhere: the folder does not exist"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        measure([GivenMaps()], **{"options": FAST, **arguments})


def test_masks_of_one_class_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"have 1 classes in 12 images at the grid of class: expected two or more"):
        measure([GivenMaps()], masks=one_class_masks(tmp_path), options=FAST)


def test_sources_of_other_images_and_no_sources_are_refused():
    with pytest.raises(
        ArgumentError, match=r"given has other images than given: 2 are of one of them alone, such as 'a"
    ):
        measure([GivenMaps(), GivenMaps(ids=GivenMaps().ids[2:])])
    with pytest.raises(ArgumentError, match=r"sources=\[\]: expected a list of StoredMaps and ComputedMaps"):
        measure([])
    with pytest.raises(ArgumentError, match=r"sources=GivenMaps.*: expected a list of StoredMaps"):
        measure(GivenMaps())


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match=r"level class holds NaN or infinite values: are the weights right"):
        measure([GivenMaps(value=math.nan)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"folds": 1}, "folds=1: expected at least 2"),
        ({"threshold": 0}, "threshold=0: expected a fraction of the longer side"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        ProbeOptions(**options)


def test_unknown_levels_and_models_in_training_mode_are_refused(stored, images, extractor):
    with pytest.raises(OutIndicesError, match=r"layer9"):
        StoredMaps(stored, out_names=["layer9"])
    with pytest.raises(ArgumentError, match=r"in training mode, .*: call model.eval\(\)"):
        ComputedMaps(images / "images", featx.create_model("resnet18", features_only=True).train())


def test_images_that_cannot_be_decoded_are_listed(tmp_path, extractor):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (32, 32)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "b/1.png").write_text("no image")
    source = ComputedMaps(tmp_path, extractor, size=64, device="cpu")
    with pytest.raises(ImageError, match=r"1 of 4 images have no maps: repair them, or leave them out .*\n  .*b/1.png"):
        measure([source], tasks=["knn"], options=FAST)
    with pytest.raises(ImageError, match=r"b/1.png: not an image"):
        source.pixels("b/1.png")


def test_an_empty_folder_of_maps_is_refused(tmp_path, extractor):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.png").write_text("no image")
    featx.extract(tmp_path / "a", extractor, tmp_path / "maps", size=64)
    with pytest.raises(ArgumentError, match=r"has no image that was extracted: run featx stats"):
        StoredMaps(tmp_path / "maps")


def test_reports_are_saved_as_json_and_csv(report, tmp_path):
    report.save(tmp_path / "a.json")
    report.save(tmp_path / "a.csv")
    saved = json.loads((tmp_path / "a.json").read_text())
    score = report.rows[1].scores["linear"]
    assert saved["rows"][1]["scores"]["linear"] == {"value": score.value, "low": score.low, "high": score.high}
    assert saved["cka"][0][1]["value"] == report.cka[0][1].value
    assert (saved["images"], saved["classes"], saved["folds"]) == (8, ["bright", "dark"], 2)
    with (tmp_path / "a.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["level"] for row in rows] == [row.level.name for row in report.rows]
    assert float(rows[1]["linear_high"]) == score.high
    with pytest.raises(OutputError, match=r"a.txt: name a report that ends with .json or .csv"):
        report.save(tmp_path / "a.txt")


def test_a_score_that_is_not_defined_is_null_and_never_the_best():
    row = Row("m", FeatureInfo(1, 1, "l"), {"knn": Score(math.nan, 0, 1)})
    report = Report([row], [], 2, (), {})
    assert report.best("knn") == []
    assert report.as_json()["rows"][0]["scores"]["knn"]["value"] is None


def test_a_chart_has_a_panel_per_score_and_a_point_per_level(report):
    figure = chart(report, "title")
    assert [axis.get_title() for axis in figure.axes] == [
        *("kNN accuracy", "linear accuracy", "linear mIoU", "PCK", "effective rank")
    ]
    points = [line for line in figure.axes[3].lines if line.get_marker() in ("o", "D") and len(line.get_xdata())]
    scores = [row.scores["correspondence"].value for row in report.rows]
    assert [line.get_xdata()[0] for line in points] == scores
    assert [line.get_marker() == "D" for line in points] == [score == max(scores) for score in scores]
    assert next(text.get_text() for text in figure.axes[0].get_yticklabels()).startswith(report.rows[0].level.name)


def test_a_chart_of_cka_alone_is_refused():
    with pytest.raises(ArgumentError, match=r"no score per level, which a chart shows: measure other tasks than cka"):
        chart(measure([GivenMaps()], tasks=["cka"], options=FAST))


def test_images_whose_masks_are_unlabeled_are_in_no_score(tmp_path, images, extractor):
    """Two of eight images have labels: each is segmented by the other one."""
    for path in (images / "masks").rglob("*.png"):
        target = tmp_path / path.relative_to(images / "masks")
        target.parent.mkdir(exist_ok=True)
        with Image.open(path) as mask:
            (mask if path.name == "0.png" else Image.new("L", mask.size, 255)).save(target)
    source = ComputedMaps(images / "images", extractor, size=64, device="cpu")
    report = measure([source], masks=tmp_path, tasks=["segmentation"], options=FAST)
    assert report.rows[0].scores["segmentation"].value > 0.4
    (tmp_path / "dark/0.png").write_bytes((tmp_path / "dark/1.png").read_bytes())
    with pytest.raises(ArgumentError, match=r"2 classes in 1 images"):
        measure([source], masks=tmp_path, tasks=["segmentation"], options=FAST)
