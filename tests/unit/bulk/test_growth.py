"""A folder grows with its inputs: existing rows stay, and the folder is complete before and after."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from support.extraction import Stopped, extract_threes, index, small_extractor
from support.fork_server import fork_server
from torch import Tensor

import featx
from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import convert, find_items, merge, stats, write_index
from featx.bulk.meta import NEXT


@contextmanager
def seeing(extractor: FeatureExtractWrapper) -> Iterator[list[int]]:
    """Within the block, the sizes of the batches that the extractor has seen."""
    seen: list[int] = []
    handle = extractor.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


def add(folder: Path, *numbers: int) -> Path:
    """Images of one color each, named after their numbers."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (40, 40), (number, 255 - number, 5 * number % 256)).save(folder / name(number))
    return folder


def name(number: int) -> str:
    return f"{number:04d}.png"


def names(*numbers: int) -> list[str]:
    return [name(number) for number in numbers]


def maps(out: Path) -> dict[str, list[Tensor]]:
    return {features.id: list(features.maps.values()) for features in FeatureDataset(out)}


def assert_same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> None:
    assert one.keys() == other.keys()
    for id_, levels in one.items():
        assert all(map(torch.equal, levels, other[id_])), id_


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("maps-*")}


def fresh(images: Path, extractor: FeatureExtractWrapper, out: Path) -> dict[str, list[Tensor]]:
    """The maps of one extraction of what there is now."""
    shutil.rmtree(out, ignore_errors=True)
    extract_threes(images, extractor, out)
    return maps(out)


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
