"""Images that changed or were removed after extraction are detected, and extracted again on request."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import random_extractor
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.extraction import run_stats

from featx import ArgumentError, FeatureDataset, FeatureExtractWrapper, OutputError, extract
from featx.bulk import Summary, check_sources
from featx.bulk.shard import KEY, stamp_of


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return random_extractor("mobilenetv3_small_050", out_indices=[1])


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        paint(folder / f"{number}.png", (9 * number, 9, 9))
    return folder


def paint(path: Path, color: tuple[int, int, int]) -> None:
    Image.new("RGB", (32, 32), color).save(path)


def run(images: Path, extractor: FeatureExtractWrapper, out: Path, **options) -> Summary:
    return extract(images, extractor, out, **{"size": 32, "rows_per_shard": 2, **options})


def spoil(images: Path) -> None:
    """One file is another, one is gone."""
    paint(images / "1.png", (255, 255, 255))
    (images / "2.png").unlink()


def test_files_that_changed_or_vanished_are_reported(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    assert check_sources(tmp_path / "out").same == 4
    spoil(images)
    found = check_sources(tmp_path / "out")
    assert (found.same, found.unknown) == (2, 0)
    assert (found.changed, found.gone) == ({"1.png": f"{images}/1.png"}, {"2.png": f"{images}/2.png"})


def test_a_file_of_the_same_size_has_changed_if_its_time_has(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    told = (images / "0.png").stat()
    os.utime(images / "0.png", ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    assert list(check_sources(tmp_path / "out").changed) == ["0.png"]


def test_a_file_that_changes_during_the_run_has_changed(tmp_path, images, extractor):
    """Even if that is before the file of its maps is written: they are of what it was when it was read."""

    def spoil_once(progress) -> None:
        if progress.written == 4 and progress.shard is None:
            paint(images / "3.png", (255, 255, 255))

    run(images, extractor, tmp_path / "out", rows_per_shard=4, progress=spoil_once)
    assert list(check_sources(tmp_path / "out").changed) == ["3.png"]


def test_paths_that_were_relative_are_found_from_anywhere(tmp_path, images, extractor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(Path("in"), extractor, tmp_path / "out")
    monkeypatch.chdir("/")
    assert check_sources(tmp_path / "out").same == 4


def test_images_in_a_tar_and_a_table_are_as_these_are(tmp_path, images, extractor):
    contents = [path.read_bytes() for path in sorted(images.iterdir())]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"sub/{number}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    pq.write_table(pa.table({"image": contents}), tmp_path / "a.parquet")
    run([tmp_path / "a.tar", tmp_path / "a.parquet"], extractor, tmp_path / "out")
    assert check_sources(tmp_path / "out").same == 8
    os.utime(tmp_path / "a.tar", ns=(0, 0))
    (tmp_path / "a.parquet").unlink()
    found = check_sources(tmp_path / "out")
    assert (len(found.changed), len(found.gone)) == (4, 4)


def test_what_is_behind_an_address_is_not_known(tmp_path, images, extractor):
    run(f"file://{images}", extractor, tmp_path / "out")
    assert check_sources(tmp_path / "out").unknown == 4


@pytest.mark.parametrize("name", ["nothing", "pipe", "\0"])
def test_what_is_not_a_file_has_no_stamp(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    assert stamp_of(f"{tmp_path}/{name}") is None


def test_folders_without_stamps_are_read_and_nothing_is_known_of_their_sources(tmp_path, images, extractor):
    for path in run(images, extractor, tmp_path / "out").shards:
        with safe_open(path, "pt") as shard:
            facts = json.loads(shard.metadata()[KEY])
        del facts["stamps"]
        save_file(load_file(path), path, {KEY: json.dumps(facts)})
    assert len(FeatureDataset(tmp_path / "out")) == 4
    assert check_sources(tmp_path / "out").unknown == 4
    assert run(images, extractor, tmp_path / "out", retry_changed=True).made == 0


# going on


def test_changed_files_are_done_again_on_request_alone(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    paint(images / "1.png", (255, 255, 255))
    before = FeatureDataset(tmp_path / "out").by_id("1.png").maps["blocks.0"]
    assert run(images, extractor, tmp_path / "out").made == 0
    assert run(images, extractor, tmp_path / "out", retry_changed=True).made == 1
    after = FeatureDataset(tmp_path / "out").by_id("1.png").maps["blocks.0"]
    assert not torch.equal(before, after)
    assert check_sources(tmp_path / "out").same == 4
    assert run(images, extractor, tmp_path / "out", retry_changed=True).made == 0


def test_files_that_are_gone_are_not_done_again(tmp_path, images, extractor):
    (images / "list.txt").write_text("".join(f"{number}.png\n" for number in range(4)))
    run(images / "list.txt", extractor, tmp_path / "out")
    spoil(images)
    again = run(images / "list.txt", extractor, tmp_path / "out", retry_changed=True)
    assert (again.made, again.failed) == (1, {})  # the shard of 1.png; 2.png keeps its maps


# the command


def test_the_command_tells_which_files_are_others(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    done = run_stats(tmp_path / "out", "--sources")
    assert (done.exit_code, done.stdout) == (0, "files of images: 4 as they were, 0 changed, 0 gone, 0 not known\n")
    spoil(images)
    done = run_stats(tmp_path / "out", "--sources")
    assert done.exit_code == 1
    assert f"changed, for extract --retry-changed:\n  1.png: {images}/1.png\n" in done.stdout
    assert f"gone:\n  2.png: {images}/2.png\n" in done.stdout
    told = json.loads(run_stats(tmp_path / "out", "--sources", "--json").stdout)
    assert told == {
        "same": 2,
        "changed": {"1.png": f"{images}/1.png"},
        "gone": {"2.png": f"{images}/2.png"},
        "unknown": 0,
    }


def test_the_command_draws_nothing_where_it_only_looks_for_files(tmp_path):
    done = run_stats(tmp_path, "--sources", "--picture", "a.png")
    assert isinstance(done.exception, ArgumentError)
    assert "--sources, --check and --picture exclude each other" in str(done.exception)


def test_sources_of_a_folder_that_holds_no_maps_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"meta\.json does not exist: expected a folder that featx extract made"):
        check_sources(tmp_path)
