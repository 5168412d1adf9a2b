"""Merged folders of several jobs equal the folder of one extraction."""

import errno
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image
from support.extraction import contents, extract_threes, small_extractor, ten_colors
from typer.testing import CliRunner

import featx
from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import merge
from featx.bulk.output_folder import as_ranges
from featx.cli import app


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


@pytest.fixture
def images(tmp_path) -> Path:
    return ten_colors(tmp_path / "in")


def run(images: Path, extractor: FeatureExtractWrapper, out: Path, **options) -> Path:
    """A folder of four shards, or of a job's part of them."""
    extract_threes(images, extractor, out, **options)
    return out


def jobs(images: Path, extractor: FeatureExtractWrapper, folder: Path, of: int) -> list[Path]:
    return [run(images, extractor, folder / f"job {job}", shard=f"{job}/{of}") for job in range(of)]


def decided(out: Path) -> dict:
    meta = json.loads((out / "meta.json").read_text())
    return {key: value for key, value in meta.items() if key != "recorded"}


@pytest.mark.parametrize("of", [2, 3, 5])
def test_folders_of_jobs_together_are_the_folder_of_one_run(tmp_path, images, extractor, of):
    whole = run(images, extractor, tmp_path / "whole")
    folders = jobs(images, extractor, tmp_path, of)
    merged = merge(reversed(folders), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)
    assert decided(tmp_path / "out") == decided(whole)
    assert (merged.shards, merged.added, merged.missing, merged.doubled) == (4, 4, (), {})
    assert (merged.written, merged.failed) == (9, 1)
    dataset = FeatureDataset(tmp_path / "out")
    assert dataset.ids == FeatureDataset(whole).ids
    assert [one.id for one in dataset.failed] == ["4.png"]


def test_a_merged_folder_says_what_it_was_merged_from(tmp_path, images, extractor):
    folders = jobs(images, extractor, tmp_path, 2)
    merge(folders, tmp_path / "out")
    recorded = json.loads((tmp_path / "out/meta.json").read_text())["recorded"]
    assert recorded["merged"] == [str(folder) for folder in folders]
    assert recorded["batch_size"] == 2


def test_files_are_linked_and_those_given_stay(tmp_path, images, extractor):
    folders = jobs(images, extractor, tmp_path, 2)
    before = [contents(folder) for folder in folders]
    merge(folders, tmp_path / "out")
    assert (tmp_path / "out/maps-000001.safetensors").samefile(folders[1] / "maps-000001.safetensors")
    assert [contents(folder) for folder in folders] == before


def test_files_are_copied_where_no_links_can_be_made(tmp_path, images, extractor, monkeypatch):
    whole = run(images, extractor, tmp_path / "whole")
    folders = jobs(images, extractor, tmp_path, 2)

    def refuse(*_) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    merge(folders, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)
    assert not (tmp_path / "out/maps-000001.safetensors").samefile(folders[1] / "maps-000001.safetensors")
    assert not list((tmp_path / "out").glob("*.part"))


def test_missing_shards_are_reported_and_may_come_later(tmp_path, images, extractor):
    whole = run(images, extractor, tmp_path / "whole")
    folders = jobs(images, extractor, tmp_path, 4)
    first = merge([folders[1], folders[3]], tmp_path / "out", partial=True)
    assert (first.shards, first.added, first.missing) == (2, 2, (0, 2))
    second = merge([folders[0], folders[2]], tmp_path / "out")
    assert (second.shards, second.added, second.missing) == (4, 2, ())
    assert contents(tmp_path / "out") == contents(whole)


def test_an_extraction_resumes_in_a_merged_folder(tmp_path, images, extractor):
    whole = run(images, extractor, tmp_path / "whole")
    merge(jobs(images, extractor, tmp_path, 3)[:2], tmp_path / "out", partial=True)
    run(images, extractor, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(whole)


def test_a_shard_that_is_not_whole_is_missing(tmp_path, images, extractor):
    folders = jobs(images, extractor, tmp_path, 2)
    cut = folders[1] / "maps-000003.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    assert merge(folders, tmp_path / "out", partial=True).missing == (3,)


def test_files_that_no_folder_has_are_named_before_anything_is_written(tmp_path, images, extractor):
    folders = jobs(images, extractor, tmp_path, 4)
    with pytest.raises(
        OutputError, match=r"out would be unfinished: 2 of 4 files are missing \(0, 2\)\. .* with --partial"
    ):
        merge([folders[1], folders[3]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_the_target_has_are_not_missing(tmp_path, images, extractor):
    whole = run(images, extractor, tmp_path / "whole")
    out = run(images, extractor, tmp_path / "out", shard="0/2")
    merge([run(images, extractor, tmp_path / "job", shard="1/2")], out)
    assert contents(out) == contents(whole)


def test_folders_may_be_merged_into_one_of_them(tmp_path, images, extractor):
    whole = run(images, extractor, tmp_path / "whole")
    folders = jobs(images, extractor, tmp_path, 2)
    merged = merge(folders, folders[0])
    assert (merged.added, merged.doubled) == (2, {})
    assert contents(folders[0]) == contents(whole)


def test_merging_again_changes_nothing(tmp_path, images, extractor):
    folders = jobs(images, extractor, tmp_path, 2)
    merge(folders, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out/.maps-000001.safetensors.some-machine-7.part").write_text("left by a merge that was killed")
    again = merge([*folders, folders[0]], tmp_path / "out")
    assert (again.added, again.doubled) == (0, {})
    assert contents(tmp_path / "out") == before
    assert not list((tmp_path / "out").glob(".*.part"))


def test_shards_that_two_folders_have_are_reported_and_taken_once(tmp_path, images, extractor):
    whole, other = run(images, extractor, tmp_path / "whole"), jobs(images, extractor, tmp_path, 2)[1]
    merged = merge([whole, other], tmp_path / "out")
    assert merged.doubled == {1: (whole, other), 3: (whole, other)}
    assert contents(tmp_path / "out") == contents(whole)


def test_of_two_shards_that_with_fewer_failures_is_taken(tmp_path, images, extractor):
    before = run(images, extractor, tmp_path / "before")
    Image.new("RGB", (40, 40), "teal").save(images / "4.png")
    after = run(images, extractor, tmp_path / "after")
    for order in ([before, after], [after, before]):
        merged = merge(order, tmp_path / f"out of {order[0].name}")
        assert (merged.written, merged.failed) == (10, 0)
        assert merged.doubled[1] == (after, before)
    assert merge([after], before).failed == 0


# what is refused

OTHERS = [
    ({"dtype": "float16"}, 'dtype: "float32" there, "float16" now'),
    ({"size": 64}, "size: 32 there, 64 now"),
    ({"name": "other"}, 'model: "MobileNetV3" there, "other" now'),
    ({"rows_per_shard": 4}, "rows per shard: 3 there, 4 now"),
]


@pytest.mark.parametrize(("options", "difference"), OTHERS, ids=lambda value: str(value)[:20])
def test_folders_of_different_recipes_are_refused_with_the_difference(tmp_path, images, extractor, options, difference):
    one, other = run(images, extractor, tmp_path / "a"), run(images, extractor, tmp_path / "b", **options)
    with pytest.raises(
        OutputError, match=r"the folders are not of one extraction; .* is there, each of these now"
    ) as refused:
        merge([one, other], tmp_path / "out")
    assert f"{other}: {difference}" in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_folders_of_other_images_are_refused(tmp_path, images, extractor):
    one = run(images, extractor, tmp_path / "a")
    (images / "9.png").rename(images / "x.png")
    other = run(images, extractor, tmp_path / "b")
    with pytest.raises(OutputError, match="images: 10 there, 10 now, and not the same ids in the same order"):
        merge([one, other], tmp_path / "out")


def test_a_target_of_another_extraction_is_refused(tmp_path, images, extractor):
    out = run(images, extractor, tmp_path / "out", dtype="float16")
    with pytest.raises(OutputError, match=r'has other settings; .*\n  dtype: "float16" there, "float32" now'):
        merge([run(images, extractor, tmp_path / "a")], out)


def test_a_target_that_holds_anything_else_is_refused(tmp_path, images, extractor):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(OutputError, match=r"out is not empty \(mine\): name a new folder"):
        merge([run(images, extractor, tmp_path / "a")], tmp_path / "out")


def test_folders_without_maps_are_all_named(tmp_path, images, extractor):
    with pytest.raises(OutputError, match=r"no meta.json in .*/nowhere, .*/in: expected folders that featx extract"):
        merge([run(images, extractor, tmp_path / "a"), tmp_path / "nowhere", images], tmp_path / "out")


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(featx.ArgumentError, match="no folders to merge: name those that featx extract --shard made"):
        merge([], tmp_path)


def test_a_target_that_is_being_written_to_is_refused(tmp_path, images, extractor):
    folder = run(images, extractor, tmp_path / "a")
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out/.lock-1-of-2"),
        pytest.raises(OutputError, match=r"another run is writing to .*out \(\.lock-1-of-2 is held\)"),
    ):
        merge([folder], tmp_path / "out")


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([4], "4"), ([0, 1, 2], "0-2"), ([0, 3, 4, 5, 9], "0, 3-5, 9")]
)
def test_numbers_are_reported_as_ranges(numbers, text):
    assert as_ranges(numbers) == text


# the command


def test_the_command_merges_and_tells_what_is_doubled(tmp_path, images, extractor):
    whole = run(images, extractor, tmp_path / "whole")
    folders = [*jobs(images, extractor, tmp_path, 2), run(images, extractor, tmp_path / "late", shard="0/4")]
    done = CliRunner().invoke(app, ["merge", *map(str, folders), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert f"maps of 9 images, 1 failed, 4 files in {tmp_path / 'out'}, 4 of them new" in done.output
    assert f"file 0 is in {folders[2]} too: that of {folders[0]} is taken" in done.output
    assert contents(tmp_path / "out") == contents(whole)


def test_the_command_merges_a_part_where_it_is_asked_for(tmp_path, images, extractor):
    one = jobs(images, extractor, tmp_path, 2)[0]
    command = ["merge", str(one), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, command).exception, OutputError)
    done = CliRunner().invoke(app, [*command, "--partial"])
    assert done.exit_code == 0
    assert "missing, or not whole: files 1, 3; merge the folders that have them into" in done.output
