"""A folder grows with its inputs: existing rows stay, and the folder is complete before and after."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.extraction import Stopped, extract_threes, index, small_extractor
from support.fork_server import fork_server
from support.growing_folder import add, assert_same, files, fresh, maps, name, names, seeing

from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import stats
from featx.bulk.meta import NEXT


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


# images that are new, and images that are gone


def test_new_images_get_files_of_their_own_and_the_others_stay_as_they_are(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(1, 9)), tmp_path / "out"
    extract_threes(images, extractor, out)
    before = files(out)
    add(images, 0, 50, 51, 52)
    done = extract_threes(images, extractor, out)
    assert (done.made, done.written, done.failed, done.removed, done.left) == (2, 12, {}, 0, 0)
    assert sorted(path.name for path in done.shards) == sorted(files(out))
    assert {key: value for key, value in files(out).items() if key in before} == before
    assert FeatureDataset(out).ids == names(*range(1, 9), 0, 50, 51, 52)
    assert [row["id"] for row in index(out)] == FeatureDataset(out).ids
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    assert extract_threes(images, extractor, out).made == 0


def test_no_image_is_seen_twice(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    extract_threes(images, extractor, out)
    add(images, 60, 61)
    with seeing(extractor) as seen:
        extract_threes(images, extractor, out)
    assert seen == [1, 2]  # one is of the check that the model runs


def test_images_that_are_gone_are_marked_and_come_back_with_their_maps(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    extract_threes(images, extractor, out)
    whole, before = maps(out), files(out)
    (images / name(3)).rename(tmp_path / "kept.png")
    (images / name(4)).unlink()
    done = extract_threes(images, extractor, out)
    assert (done.made, done.written, done.removed) == (0, 6, 2)
    dataset = FeatureDataset(out)
    assert (dataset.ids, dataset.removed) == (names(0, 1, 2, 5, 6, 7), names(3, 4))
    assert_same(maps(out), {id_: whole[id_] for id_ in dataset.ids})
    assert {row["id"]: row["status"] for row in index(out)} == dict.fromkeys(dataset.ids, "ok") | dict.fromkeys(
        names(3, 4), "removed"
    )
    (tmp_path / "kept.png").rename(images / name(3))
    assert extract_threes(images, extractor, out).made == 0
    assert FeatureDataset(out).removed == names(4)
    assert_same(maps(out), {id_: whole[id_] for id_ in names(0, 1, 2, 3, 5, 6, 7)})
    assert files(out) == before


def test_the_index_tells_the_row_of_the_file(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    extract_threes(images, extractor, out)
    (images / name(3)).unlink()
    add(images, 99)
    extract_threes(images, extractor, out)
    found = maps(out)
    for row in index(out):
        if row["status"] == "ok":
            stored = load_file(out / row["shard"])
            levels = FeatureDataset(out).levels
            assert all(
                torch.equal(stored[key][row["row"]], map_) for key, map_ in zip(levels, found[row["id"]], strict=True)
            )


def test_images_that_changed_or_failed_are_done_again_alone_and_on_request(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    (images / name(2)).write_text("no image")
    extract_threes(images, extractor, out)
    before = maps(out)
    add(images, 2)
    Image.new("RGB", (44, 44), "white").save(images / name(5))
    assert extract_threes(images, extractor, out).made == 0
    assert [*extract_threes(images, extractor, out).failed] == names(2)
    assert extract_threes(images, extractor, out, retry_failed=True).made == 1
    assert_same({id_: maps(out)[id_] for id_ in before}, before)
    done = extract_threes(images, extractor, out, retry_changed=True, retry_failed=True)
    assert (done.made, done.written, done.failed) == (1, 8, {})
    dataset = FeatureDataset(out)
    assert sorted(dataset.ids) == names(*range(8))
    assert dataset.by_id(name(5)).size == (44, 44)
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    assert sorted(row["id"] for row in index(out)) == names(*range(8))
    found = stats(out)
    assert (found.planned[0], found.written, found.missing, found.failed.total()) == (8, 8, 0, 0)
    assert found.levels[0].values == 8 * before[name(0)][0].numel()


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_a_folder_grown_ten_times_has_the_rows_of_one_extraction(tmp_path, extractor, count):
    images = add(tmp_path / "in", *range(count))
    for number in range(count):
        os.replace(images / name(number), images / f"{(number * 7919) % count:05d}-{number}.png")
    every = sorted(images.iterdir())
    later, options = tmp_path / "later", {"rows_per_shard": 64, "batch_size": 16, "pooling": ["none", "mean"]}
    later.mkdir()
    first = count // 2
    for end in (first + (count - first) * part // 10 for part in range(11)):
        for path in every[:end]:
            if not (later / path.name).exists():
                os.link(path, later / path.name)
        extract_threes(later, extractor, tmp_path / "grown", **options)
    extract_threes(images, extractor, tmp_path / "whole", **options)
    grown, whole = FeatureDataset(tmp_path / "grown"), FeatureDataset(tmp_path / "whole")
    assert sorted(grown.ids) == sorted(whole.ids)
    assert len(whole) == count
    for features in whole:
        other = grown.by_id(features.id)
        assert all(torch.equal(map_, other.maps[level]) for level, map_ in features.maps.items())


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_arrays_and_neighbors_are_of_the_rows_that_count(tmp_path, extractor, keep_aspect):
    """Rows between others that were removed, in files that hold maps of one shape or of several."""
    images, out = add(tmp_path / "in", *range(9)), tmp_path / "out"
    Image.new("RGB", (80, 40), "teal").save(images / name(1))
    options = {"rows_per_shard": 5, "keep_aspect": keep_aspect, "pooling": ["none", "mean"]}
    extract_threes(images, extractor, out, **options)
    for number in (1, 3, 6):
        (images / name(number)).unlink()
    add(images, 80)
    extract_threes(images, extractor, out, **options)
    dataset = FeatureDataset(out)
    for level in dataset.levels:
        assert np.array_equal(dataset.to_numpy(level), np.stack([one.maps[level].numpy() for one in dataset]))
    found = FeatureDataset(out, dataset.levels[1:]).nearest(name(4), k=9)
    assert sorted(one.id for one in found) == names(0, 2, 5, 7, 8, 80)


# one generation at any time


def test_a_folder_is_of_the_generation_before_until_the_next_is_whole(tmp_path, extractor):
    images, out = add(tmp_path / "in", *range(8)), tmp_path / "out"
    extract_threes(images, extractor, out)
    opened = FeatureDataset(out)
    whole = maps(out)
    add(images, *range(20, 28))
    (images / name(0)).unlink()
    for left in (2, 1):
        done = extract_threes(images, extractor, out, stopped=Stopped(1))
        assert (done.made, done.left) == (1, left)
        assert FeatureDataset(out).ids == names(*range(8)) == [row["id"] for row in index(out)]
        assert stats(out).written == 8
    assert extract_threes(images, extractor, out).made == 1
    assert FeatureDataset(out).ids == names(*range(1, 8), *range(20, 28))
    assert {features.id: None for features in opened} == dict.fromkeys(whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(12))
def test_a_growth_that_ends_at_any_write_leaves_one_generation_and_resumes(tmp_path, extractor, monkeypatch, moment):
    images, out = add(tmp_path / "in", *range(5)), tmp_path / "out"
    extract_threes(images, extractor, out)
    before = maps(out)
    (images / name(1)).unlink()
    add(images, *range(30, 34))
    left, rename = moment, Path.replace

    def dying(self: Path, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        done = rename(self, target)
        left -= 1
        if left == 0:
            raise Killed
        return done

    monkeypatch.setattr(Path, "replace", dying)
    with suppress(Killed):
        extract_threes(images, extractor, out)
    monkeypatch.setattr(Path, "replace", rename)
    ids = FeatureDataset(out).ids
    assert ids in (names(*range(5)), names(0, *range(2, 5), *range(30, 34)))
    assert_same(
        {id_: maps(out)[id_] for id_ in before if id_ in ids}, {id_: before[id_] for id_ in before if id_ in ids}
    )
    extract_threes(images, extractor, out)
    assert FeatureDataset(out).ids == names(0, *range(2, 5), *range(30, 34))
    assert [row["id"] for row in index(out) if row["status"] == "ok"] == FeatureDataset(out).ids
    assert_same(maps(out), fresh(images, extractor, tmp_path / "whole"))
    assert not (out / NEXT).exists()


def grow(images: Path, out: Path) -> None:
    torch.set_num_threads(1)
    extract_threes(images, small_extractor(), out, streams=1)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[Path], ForkServerProcess]]:
    """Starts a process that extracts the folder `in` into another one."""
    with fork_server(__name__, "featx.bulk", "torchvision.transforms.v2") as context:

        def start(out: Path) -> ForkServerProcess:
            process = context.Process(target=grow, args=(tmp_path / "in", out))
            process.start()
            return process

        yield start


@pytest.mark.sweep
def test_growths_killed_after_any_file_leave_one_generation_and_resume(tmp_path, started):
    images, counts = add(tmp_path / "in", *range(12)), (0, 1, 4, 9, 10, 10)
    started(tmp_path / "first").join()
    before = FeatureDataset(tmp_path / "first").ids
    (images / name(2)).unlink()
    add(images, *range(40, 70))
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    started(tmp_path / "whole").join()
    after, killed = FeatureDataset(tmp_path / "whole").ids, 0
    assert (len(before), len(after)) == (12, 41)
    for turn, count in enumerate(counts):
        out = tmp_path / f"{turn}"
        shutil.copytree(tmp_path / "first", out)
        process = started(out)
        while process.is_alive() and not ((out / NEXT).exists() and len(files(out)) >= 4 + count):
            time.sleep(0.001)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        assert FeatureDataset(out).ids in ([before] if len(files(out)) < 14 else [before, after])
        again = started(out)
        again.join()
        assert again.exitcode == 0
        assert files(out) == files(tmp_path / "whole")
        assert (out / "index.parquet").read_bytes() == (tmp_path / "whole" / "index.parquet").read_bytes()
        assert not [path.name for path in out.iterdir() if path.name.endswith((".part", NEXT))]
    assert killed >= 4  # the others were done before


@pytest.mark.parametrize("key", ["images", "removed", "grown", "grown_fingerprint"])
def test_a_grown_folder_whose_meta_lost_an_entry_is_refused(tmp_path, extractor, key):
    images, out = add(tmp_path / "in", 1, 2, 3), tmp_path / "out"
    extract_threes(images, extractor, out)
    (images / name(2)).unlink()
    extract_threes(add(images, 4), extractor, out)
    facts = json.loads((out / "meta.json").read_text())
    del facts[key]
    (out / "meta.json").write_text(json.dumps(facts))
    with pytest.raises(OutputError, match=r"meta\.json does not describe an extraction that featx knows"):
        FeatureDataset(out)
