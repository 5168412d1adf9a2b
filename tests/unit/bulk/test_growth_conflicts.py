"""Growth of a folder beside other changes: unfinished runs, damaged files, several jobs, and other inputs."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from support.extraction import Stopped, extract_threes, small_extractor
from support.growing_folder import add, assert_same, files, fresh, maps, name, names, seeing

import featx
from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import convert, find_items, merge, stats, write_index
from featx.bulk.meta import NEXT


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


def test_inputs_that_change_once_more_before_the_next_generation_is_whole(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(4)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, *range(20, 27))
    extract_threes(images, extractor, out, stopped=Stopped(1))
    (images / name(21)).unlink()
    add(images, 70)
    with seeing(extractor) as seen:
        extract_threes(images, extractor, out)
    assert sorted(FeatureDataset(out).ids) == names(0, 1, 2, 3, 20, *range(22, 27), 70)
    assert FeatureDataset(out).removed == names(21)
    assert seen == [1, 2, 2, 2]  # 23 to 26 and 70, the last batch filled up; 20 and 22 were there
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    assert not (out / NEXT).exists()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_first_run_that_did_not_end_grows_as_well(tmp_path, extractor, done):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    if done:
        extract_threes(images, extractor, out, stopped=Stopped(done))
    else:
        with pytest.raises(KeyboardInterrupt):
            extract_threes(images, extractor, out, progress=interrupt)
    before = files(out)
    assert len(before) == done
    (images / name(0)).unlink()
    add(images, 77)
    extract_threes(images, extractor, out)
    assert sorted(FeatureDataset(out).ids) == names(*range(1, 8), 77)
    assert FeatureDataset(out).removed == names(0)[: bool(done)]
    assert {key: value for key, value in files(out).items() if key in before} == before
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))


def interrupt(_: object) -> None:
    raise KeyboardInterrupt


def test_a_file_that_was_damaged_is_extracted_again_when_the_folder_grows(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    extract_threes(images, extractor, out)
    os.truncate(out / "maps-000001.safetensors", 100)
    add(images, 80)
    extract_threes(images, extractor, out)
    assert sorted(FeatureDataset(out).ids) == names(*range(8), 80)
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    assert stats(out).sound


def test_a_grown_folder_without_one_of_its_files_is_reported(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(4)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, 80)
    extract_threes(images, extractor, out)
    (out / "maps-000000.safetensors").unlink()
    with pytest.raises(OutputError, match=r"maps-000000\.safetensors is missing"):
        FeatureDataset(out)
    extract_threes(images, extractor, out)
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))


# several jobs


def test_jobs_grow_a_folder_together_and_the_last_one_ends_it(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, *range(20, 35))
    (images / name(1)).unlink()
    for job in (2, 0, 1):
        assert FeatureDataset(out).ids == names(*range(6))
        extract_threes(images, extractor, out, shard=f"{job}/3")
    assert FeatureDataset(out).ids == names(0, *range(2, 6), *range(20, 35))
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    for job in range(3):
        assert extract_threes(images, extractor, out, shard=f"{job}/3").made == 0


def test_a_folder_that_another_run_writes_to_does_not_grow(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out, shard="0/2")
    add(images, 90)
    with FileLock(out / ".lock-1-of-2"), pytest.raises(OutputError, match="another run is writing to"):
        extract_threes(images, extractor, out, shard="0/2")
    assert not (out / NEXT).exists()


def test_a_job_that_finds_other_images_than_the_others_is_refused(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, *range(20, 32))
    seen: list[OutputError] = []

    def late() -> bool:
        if not seen:
            add(images, 40)
            with pytest.raises(OutputError, match="another run is writing to") as refused:
                extract_threes(images, extractor, out, shard="1/2")
            seen.append(refused.value)
            (images / name(40)).unlink()
        return False

    extract_threes(images, extractor, out, shard="0/2", stopped=late)
    extract_threes(images, extractor, out, shard="1/2")
    assert seen
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))


# what is refused


def test_inputs_that_share_no_image_with_the_folder_are_refused(tmp_path, extractor):
    out = tmp_path / "out"
    extract_threes(add(tmp_path / "in", *range(4)), extractor, out)
    before = files(out), (out / "meta.json").read_bytes()
    with pytest.raises(OutputError, match=r"none of the 4 images of .*'0000\.png'.*'0009\.png'.*a new folder"):
        extract_threes(add(tmp_path / "other", 9), extractor, out)
    assert (files(out), (out / "meta.json").read_bytes()) == before


def test_more_files_than_there_are_numbers_are_refused(tmp_path, extractor, monkeypatch):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out)
    monkeypatch.setattr("featx.bulk.meta.MOST_SHARDS", 3)
    before = files(out), (out / "meta.json").read_bytes()
    add(images, *range(20, 26))
    with pytest.raises(OutputError, match="would have 4 files of maps, more than 3: name a new folder"):
        extract_threes(images, extractor, out)
    assert (files(out), (out / "meta.json").read_bytes()) == before
    assert not (out / NEXT).exists()


def test_another_column_is_refused(tmp_path, extractor):
    add(tmp_path, *range(4))
    lines = ["id,one,two", *(f"{n},{name(n)},{name(3 - n)}" for n in range(4))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    extract_threes(find_items(tmp_path / "list.csv", "one"), extractor, tmp_path / "out")
    (tmp_path / "list.csv").write_text("\n".join([*lines, "4,0000.png,0001.png"]))
    with pytest.raises(OutputError, match="column: one there, two now"):
        extract_threes(find_items(tmp_path / "list.csv", "two"), extractor, tmp_path / "out")
    assert extract_threes(find_items(tmp_path / "list.csv", "one"), extractor, tmp_path / "out").made == 1


# whoever reads a folder


def test_relative_sources_are_found_from_where_each_generation_was_begun(tmp_path, extractor, monkeypatch):
    images, out = add(tmp_path / "in", *range(4)), tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    extract_threes(Path("in"), extractor, out)
    add(images, 80)
    monkeypatch.chdir(tmp_path / "elsewhere")
    extract_threes(Path("../in"), extractor, out)
    monkeypatch.chdir("/")
    found = featx.bulk.check_sources(out)
    assert (found.same, found.changed, found.gone, found.unknown) == (5, {}, {}, 0)


def test_other_formats_merging_and_the_index_take_grown_folders(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out)
    (images / name(2)).unlink()
    add(images, 80)
    extract_threes(images, extractor, out)
    expected = maps(out)
    convert(out, tmp_path / "npy", "npy")
    level = FeatureDataset(out).levels[0]
    stored = np.load(tmp_path / "npy" / f"{level}.npy")
    assert all(np.array_equal(row, levels[0]) for row, levels in zip(stored, expected.values(), strict=True))
    done = merge([out], tmp_path / "merged")
    assert (done.shards, done.missing, done.written) == (3, (), 6)
    assert_same(maps(tmp_path / "merged"), expected)
    assert extract_threes(images, extractor, tmp_path / "merged").made == 0
    assert write_index(out) == 7


def test_a_folder_that_is_growing_is_not_merged(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(6)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, *range(20, 28))
    extract_threes(images, extractor, out, stopped=Stopped(1))
    with pytest.raises(OutputError, match=r"images are being added to .*out: run the same featx extract again"):
        merge([out], tmp_path / "merged")
    extract_threes(images, extractor, out)
    assert merge([out], tmp_path / "merged").written == 14


def test_files_of_no_generation_are_left_alone(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(4)), tmp_path / "out"
    extract_threes(images, extractor, out)
    shutil.copy(out / "maps-000000.safetensors", out / "maps-000007.safetensors")
    assert FeatureDataset(out).ids == names(*range(4))
    add(images, 80)
    extract_threes(images, extractor, out)
    assert FeatureDataset(out).ids == names(*range(4), 80)
