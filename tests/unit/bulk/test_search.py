"""Arrays, tables and nearest neighbors of a FeatureDataset, compared with NumPy's brute force."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from featx import ArgumentError, FeatureDataset, MissingPackageError, extract
from featx.bulk import Recipe, Summary, find_items
from featx.bulk import arrays as arrays_module
from featx.bulk import search as search_module
from featx.bulk.meta import Meta, Plan, write_meta
from featx.bulk.shard import Failure, Shard, write_shard

CHS = 12


def written(folder: Path, vectors: np.ndarray, rows: int, dtype: str = "float32", failed: tuple[int, ...] = ()) -> Path:
    """A folder of vectors, in files of so many; those that failed have no row."""
    folder.mkdir(parents=True, exist_ok=True)
    levels = [{"name": "deep", "chs": vectors.shape[1], "reduction": 32, "pooling": "mean"}]
    decided = {"levels": levels, "dtype": dtype, "model": "m", "keep_aspect": False, "preprocessing": {}}
    plan = Plan(decided, len(vectors), "", rows)
    write_meta(folder, Meta((plan,), plan.items))
    for number in range(plan.shards):
        items = [item for item in plan.items_of(number) if item not in failed]
        maps = [[torch.from_numpy(vectors[item]).to(getattr(torch, dtype)) for item in items]]
        ids = [f"{item}.png" for item in items]
        gone = [Failure(f"{item}.png", "", "bad") for item in plan.items_of(number) if item in failed]
        sizes = [(item + 1, 40) for item in items]
        shard = Shard(number, plan.fingerprint, ["deep"], ids, ids, sizes, [None] * len(ids), maps if ids else [], gone)
        write_shard(folder, shard)
    return folder


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks of seven rows, tiles of five: neither divides a file of four."""
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 7 * 4 * CHS)
    monkeypatch.setattr(search_module, "TILE", 5)


@pytest.fixture
def vectors() -> np.ndarray:
    """Some are equal, one the other's multiple, one of zeros."""
    found = np.random.default_rng(0).normal(size=(43, CHS)).astype(np.float32)
    found[17], found[30] = found[5], 2 * found[5]
    found[11] = 0
    found[41] = found[40] + 1e-4
    return found


def cosines(vectors: np.ndarray) -> np.ndarray:
    exact = vectors.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1)
    lengths[lengths == 0] = np.inf
    return (exact @ exact.T / lengths / lengths[:, None]).astype(np.float32)


# arrays and tables


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_rows_are_one_array(tmp_path, vectors, dtype):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4, dtype, failed=(2, 8, 9, 10, 11)))
    kept = [row for row in range(43) if row not in (2, 8, 9, 10, 11)]
    expected = torch.from_numpy(vectors[kept]).to(getattr(torch, dtype))
    made = dataset.to_numpy()
    assert made.dtype == (np.float16 if dtype == "float16" else np.float32)
    assert np.array_equal(made, (expected.float() if dtype == "bfloat16" else expected).numpy())
    assert np.array_equal(made, np.stack([one.maps["deep"].float().numpy() for one in dataset]).astype(made.dtype))


def test_maps_are_one_array_if_they_have_one_shape(tmp_path):
    from conftest import random_extractor
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number, width in enumerate((64, 96, 128)):
        Image.new("RGB", (width, 64), (60 * number, 9, 9)).save(tmp_path / "in" / f"{number}.png")
    extractor = random_extractor("mobilenetv3_small_050", out_indices=[1, 4])
    extract(tmp_path / "in", extractor, tmp_path / "square", size=32)
    extract(tmp_path / "in", extractor, tmp_path / "aspect", size=32, keep_aspect=True)
    square = FeatureDataset(tmp_path / "square")
    assert np.array_equal(square.to_numpy("blocks.0"), np.stack([one.maps["blocks.0"].numpy() for one in square]))
    with pytest.raises(
        ArgumentError, match=r"level blocks\.0 of .* has maps of 3 shapes, such as .*read them one by one"
    ):
        FeatureDataset(tmp_path / "aspect").to_numpy("blocks.0")
    with pytest.raises(ArgumentError, match=r"level=None: choose among \['blocks\.0', 'blocks\.5'\]"):
        square.to_numpy()
    for ask in (square.to_pandas, lambda: square.nearest("0.png", level="blocks.5"), lambda: square.duplicates(0.5)):
        with pytest.raises(ArgumentError, match=r"hold maps, and vectors are expected|level=None: choose"):
            ask()


def test_a_table_has_a_row_per_image_and_a_column_of_vectors(tmp_path, vectors):
    pytest.importorskip("pandas")
    frame = FeatureDataset(written(tmp_path / "maps", vectors, 4, failed=(1,))).to_pandas()
    kept = [row for row in range(43) if row != 1]
    assert list(frame.columns) == ["id", "width", "height", "deep"]
    assert list(frame["id"]) == [f"{row}.png" for row in kept]
    assert list(frame["width"]) == [row + 1 for row in kept]
    assert set(frame["height"]) == {40}
    assert np.array_equal(np.stack(frame["deep"]), vectors[kept])


def test_without_pandas_a_table_names_what_to_install(tmp_path, vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match=r"needs pandas: pip install 'featx\[pandas\]'"):
        FeatureDataset(written(tmp_path / "maps", vectors, 4)).to_pandas()


def test_a_folder_without_images_has_no_array(tmp_path, vectors):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors[:3], 4, failed=(0, 1, 2)))
    with pytest.raises(ArgumentError, match="has no image that was extracted"):
        dataset.to_numpy()


# the nearest


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_nearest_are_those_of_brute_force_earlier_ones_first(tmp_path, vectors, metric):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    exact = vectors.astype(np.float64)
    similar = cosines(vectors) if metric == "cosine" else (exact @ exact.T).astype(np.float32)
    for row in range(43):
        order = [one for one in np.argsort(-similar[row], kind="stable") if one != row][:6]
        found = dataset.nearest(f"{row}.png", 6, metric=metric)
        assert [one.id for one in found] == [f"{one}.png" for one in order]
        assert np.allclose([one.similarity for one in found], similar[row][order], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, list])
def test_a_vector_in_hand_finds_its_own_image_too(tmp_path, vectors, kind):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    found = dataset.nearest(kind(vectors[5]), 3)
    assert [one.id for one in found] == ["5.png", "17.png", "30.png"]  # of one direction, in their order
    assert {one.similarity for one in found} == {1.0}


def test_more_neighbors_than_images_are_all_images(tmp_path, vectors):
    assert len(FeatureDataset(written(tmp_path / "maps", vectors, 4)).nearest("0.png", 100)) == 42


def test_a_vector_of_zeros_has_the_cosine_zero(tmp_path, vectors):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    assert {one.similarity for one in dataset.nearest("11.png", 42)} == {0.0}
    assert [one.id for one in dataset.nearest(np.zeros(CHS), 3)] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_stored_vectors_that_are_not_finite_are_similar_to_none(tmp_path, vectors, bad):
    vectors[3, 0] = bad
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    for metric in ("cosine", "dot"):
        assert "3.png" not in {one.id for one in dataset.nearest("0.png", 100, metric=metric)}
    assert not {"3.png"} & {id_ for pair in dataset.duplicates(0.01) for id_ in pair[:2]}


@pytest.mark.parametrize(
    ("query", "options", "problem"),
    [
        (np.zeros(CHS + 1), {}, r"expected a vector \(12,\) for level deep, got shape \(13,\)"),
        (np.zeros((1, CHS)), {}, r"got shape \(1, 12\)"),
        (np.full(CHS, np.nan), {}, "expected a vector of finite numbers, got one with NaN"),
        ({"a": 1}, {}, "expected an id or a vector of numbers, got dict"),
        ("0.png", {"k": 0}, "k=0: expected an int of at least 1"),
        ("0.png", {"metric": "l2"}, r"metric='l2': choose one of \('cosine', 'dot'\)"),
        ("0.png", {"level": "lost"}, r"level='lost': choose among \['deep'\]"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(tmp_path, vectors, query, options, problem):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    with pytest.raises(ArgumentError, match=problem):
        dataset.nearest(query, **options)


def test_an_id_without_a_row_is_reported_why(tmp_path, vectors):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4, failed=(7,)))
    with pytest.raises(KeyError, match=r"7\.png: bad"):
        dataset.nearest("7.png")


# duplicates


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.9999999, 1.0])
def test_duplicates_are_those_of_brute_force(tmp_path, vectors, threshold):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    similar = cosines(vectors)
    expected = {
        (f"{i}.png", f"{j}.png") for i in range(43) for j in range(i + 1, 43) if similar[i, j] >= np.float32(threshold)
    }
    found = list(dataset.duplicates(threshold))
    assert {pair[:2] for pair in found} == expected
    assert len(found) == len(expected)
    for pair in found:
        one, other = (int(id_.removesuffix(".png")) for id_ in pair[:2])
        assert pair.similarity == pytest.approx(similar[one, other], rel=1e-6)
    assert ("5.png", "17.png") in expected


@pytest.mark.parametrize("threshold", [0, 1.5, -1, float("nan"), "0.9"])
def test_a_threshold_that_is_none_is_refused_at_once(tmp_path, vectors, threshold):
    dataset = FeatureDataset(written(tmp_path / "maps", vectors, 4))
    with pytest.raises(ArgumentError, match="expected the least cosine, above 0 and at most 1"):
        dataset.duplicates(threshold)


MEASURE = """
import json, sys
import featx
dataset = featx.FeatureDataset(sys.argv[1])
near = dataset.nearest("0.png", 5)
pairs = sum(1 for _ in dataset.duplicates(0.5))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([peak, pairs, near[0].id]))
"""


@pytest.mark.sweep
@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell the most memory that a process had")
def test_memory_does_not_grow_with_the_vectors(tmp_path):
    """20,000 vectors of 512 numbers are 80 MB in float64; 1,200 of them are equal, which are 719,400 pairs."""
    draw = np.random.default_rng(0)
    peaks = []
    for count in (5000, 20000):
        vectors = draw.normal(size=(count, 512)).astype(np.float32)
        vectors[:1200] = vectors[0]
        folder = written(tmp_path / f"{count}", vectors, 2000)
        ran = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=True)
        peak, pairs, nearest = json.loads(ran.stdout)
        assert nearest == "1.png"
        assert pairs == 1200 * 1199 // 2
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20 * 1024  # kilobytes: ids and headers, and none of the vectors


# what is shown of objects


def test_objects_are_shown_in_a_line(tmp_path, vectors):
    folder = written(tmp_path / "maps", vectors, 4, failed=(1,))
    dataset = FeatureDataset(folder)
    assert repr(dataset) == f"FeatureDataset({str(folder)!r}, 42 images, levels ['deep'])"
    assert repr(dataset[0]) == "Features('0.png', {'deep': (12,)}, size=(1, 40))"
    summary = Summary(7, {"a": "b" * 1000}, [Path("x")] * 3, 3 * 2**20, 2, 1)
    assert repr(summary) == "Summary(7 images, 1 failed, 2 of 3 files made now, 1 left, 3.0 MiB)"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").touch()
    assert repr(find_items(tmp_path / "in")) == "Items(1 images of Files)"
    assert len(repr(Recipe("mean", size=64))) < 40
