"""FeatureDataset returns what was extracted, in any order, in any process, from any file system."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from conftest import random_extractor
from PIL import Image
from safetensors.torch import load_file

import featx
from featx import ArgumentError, FeatureDataset, OutputError, extract
from featx.bulk import feature_dataset as dataset_module

SIZE = 32


@pytest.fixture(scope="module")
def extractor():
    return random_extractor("mobilenetv3_small_050", out_indices=[1, 4])


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        Image.new("RGB", (40 + number, 40), (30 * number, 255 - 30 * number, 99)).save(folder / f"{number}.png")
    (folder / "2.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, extractor, images) -> Path:
    out = tmp_path_factory.mktemp("maps") / "out"
    extract(images, extractor, out, size=SIZE, rows_per_shard=3)
    return out


IDS = [f"{number}.png" for number in (0, 1, 3, 4, 5, 6, 7)]


def same(one, other) -> bool:
    return (
        one.id == other.id
        and one.size == other.size
        and one.maps.keys() == other.maps.keys()
        and all(torch.equal(map_, other.maps[level]) for level, map_ in one.maps.items())
    )


def test_rows_are_those_of_the_files_in_their_order(folder):
    dataset = FeatureDataset(folder)
    shards = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    expected = [{level: maps[level][row] for level in maps} for maps in shards for row in range(len(maps["blocks.0"]))]
    assert [features.id for features in dataset] == dataset.ids == IDS
    assert len(dataset) == len(expected) == 7
    for features, maps in zip(dataset, expected, strict=True):
        assert features.maps.keys() == maps.keys()
        assert all(torch.equal(features.maps[level], maps[level]) for level in maps)


def test_a_row_says_the_size_of_its_picture(folder):
    assert [features.size for features in FeatureDataset(folder)] == [(40 + int(id_[0]), 40) for id_ in IDS]


def test_rows_are_found_by_id_and_from_the_end(folder):
    dataset = FeatureDataset(folder)
    assert same(dataset.by_id("4.png"), dataset[3])
    assert same(dataset[-1], dataset[6])


def test_what_is_not_there_is_an_error_that_says_why(folder):
    dataset = FeatureDataset(folder)
    with pytest.raises(IndexError, match="row 7: there are 7"):
        dataset[7]
    with pytest.raises(KeyError, match=r"2\.png: not an image in any format"):
        dataset.by_id("2.png")
    with pytest.raises(KeyError, match=r"9\.png: it was not extracted"):
        dataset.by_id("9.png")


def test_failed_images_are_named_with_their_reasons(folder, images):
    (failure,) = FeatureDataset(folder).failed
    assert (failure.id, failure.source) == ("2.png", f"{images}/2.png")
    assert "not an image" in failure.reason


def test_only_the_levels_asked_for_are_read(folder):
    assert list(FeatureDataset(folder, ["blocks.5"])[0].maps) == ["blocks.5"]
    with pytest.raises(ArgumentError, match=r"levels \['lost'\] are not stored in .*: choose among \['blocks.0', "):
        FeatureDataset(folder, ["blocks.5", "lost"])


def test_a_folder_that_holds_no_maps_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"meta\.json does not exist: expected a folder that featx extract made"):
        FeatureDataset(tmp_path)


def test_a_file_of_another_extraction_is_refused(tmp_path, extractor, images, folder):
    extract(images, extractor, tmp_path, size=SIZE, rows_per_shard=1)
    (tmp_path / "maps-000001.safetensors").write_bytes((folder / "maps-000001.safetensors").read_bytes())
    with pytest.raises(OutputError, match=r"maps-000001\.safetensors is of another extraction than the meta\.json"):
        FeatureDataset(tmp_path)


def test_changing_a_row_does_not_change_the_next_reading(folder):
    dataset = FeatureDataset(folder)
    dataset[0].maps["blocks.5"].zero_()
    assert dataset[0].maps["blocks.5"].abs().max() > 0


def test_files_are_closed_when_many_are_open(folder, monkeypatch):
    monkeypatch.setattr(dataset_module, "MOST_OPEN", 1)
    dataset = FeatureDataset(folder)
    assert [dataset[row].id for row in (0, 6, 3, 0)] == ["0.png", "7.png", "4.png", "0.png"]
    assert len(dataset._open) == 1


def test_a_dataset_can_be_pickled_after_it_was_read(folder):
    dataset = FeatureDataset(folder)
    before = dataset[3]
    dataset.by_id("0.png")
    assert same(pickle.loads(pickle.dumps(dataset))[3], before)


READS = """
import json, sys
import torch
from featx import FeatureDataset
from torch.utils.data import DataLoader

if __name__ == "__main__":
    folder, start = sys.argv[1:]
    dataset = FeatureDataset(folder)
    first = dataset[0].maps["blocks.5"]  # so that files are open when workers start
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=start))
    stacked = torch.cat([batch.maps["blocks.5"] for batch in batches])
    same = torch.equal(stacked, torch.stack([features.maps["blocks.5"] for features in dataset]))
    again = torch.equal(dataset[0].maps["blocks.5"], first)
    print(json.dumps([[id_ for batch in batches for id_ in batch.id], same, again]))
"""


@pytest.mark.sweep
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_read_it(folder, start, tmp_path):
    """In a process of its own: others that tests import, such as Ray's, have threads, which a fork leaves behind."""
    script = tmp_path / "reads.py"
    script.write_text(READS)
    ran = subprocess.run([sys.executable, script, folder, start], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [IDS, True, True]


def test_maps_of_different_sizes_come_back_as_they_were(tmp_path, extractor):
    sizes = {"tall.png": (40, 80), "wide.png": (90, 45), "flat.png": (45, 90)}
    (tmp_path / "in").mkdir()
    for name, size in sizes.items():
        Image.radial_gradient("L").resize(size).save(tmp_path / "in" / name)
    extract(tmp_path / "in", extractor, tmp_path / "out", size=SIZE, keep_aspect=True, pooling=["none", "mean"])
    dataset = FeatureDataset(tmp_path / "out")
    for name, size in sizes.items():
        with Image.open(tmp_path / "in" / name) as image, torch.inference_mode():
            x = featx.transform_whole(extractor, size=SIZE)(image.convert("RGB"))[None]
            map_, deepest = extractor(x)
        features = dataset.by_id(name)
        assert features.size == size
        torch.testing.assert_close(features.maps["blocks.0"], map_[0], rtol=1e-4, atol=1e-5)  # batches add differently
        torch.testing.assert_close(features.maps["blocks.5"], deepest[0].mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert len(load_file(tmp_path / "out/maps-000000.safetensors")["blocks.5"]) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_come_back_as_they_were(tmp_path, extractor, images, folder, dtype):
    extract(images, extractor, tmp_path, size=SIZE, dtype=dtype)
    row, whole = FeatureDataset(tmp_path)[5], FeatureDataset(folder)[5]
    assert all(torch.equal(row.maps[level], map_.to(dtype)) for level, map_ in whole.maps.items())


def test_over_a_network_only_headers_and_rows_are_fetched(folder, monkeypatch):
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/maps/{path.name}", path.read_bytes())
    try:
        dataset, local = FeatureDataset("memory://maps"), FeatureDataset(folder)
        fetched, cat_file = [], type(system).cat_file

        def counted(self, path, start=None, end=None, **options):
            fetched.append(end - start)
            return cat_file(self, path, start, end, **options)

        monkeypatch.setattr(type(system), "cat_file", counted)
        assert same(dataset[4], local[4])
        assert fetched == [map_.nbytes for map_ in local[4].maps.values()]
        assert dataset.failed == local.failed
        assert same(pickle.loads(pickle.dumps(dataset)).by_id("7.png"), local[6])
    finally:
        system.rm("/maps", recursive=True)
