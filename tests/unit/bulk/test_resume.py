"""A stopped extraction resumes: finished rows stay, nothing is repeated, and another extraction is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file
from support.extraction import Stopped, plan_of, small_extractor, ten_colors
from support.extraction import extract_threes as run
from torch import Tensor

import featx
from featx import FeatureDataset, FeatureExtractWrapper, OutputError
from featx.bulk import write_index
from featx.bulk.header import read_header
from featx.bulk.shard import Shard, shard_name, write_shard

SIZE = 32


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractWrapper:
    return small_extractor()


@pytest.fixture
def images(tmp_path) -> Path:
    return ten_colors(tmp_path / "in")


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def maps(out: Path) -> dict[str, Tensor]:
    return {features.id: features.maps["blocks.5"] for features in FeatureDataset(out)}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_stopped_run_resumes_where_it_ended_and_gives_the_same_files(tmp_path, images, extractor, shards):
    whole = run(images, extractor, tmp_path / "whole")
    first = run(images, extractor, tmp_path / "out", stopped=Stopped(shards))
    assert (first.made, first.left, len(first.shards)) == (shards, 4 - shards, shards)
    second = run(images, extractor, tmp_path / "out")
    assert (second.made, second.left) == (4 - shards, 0)
    assert (second.written, second.failed) == (whole.written, whole.failed)
    assert (whole.written, [*whole.failed]) == (9, ["4.png"])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_index_of_a_stopped_run_has_what_is_there(tmp_path, images, extractor):
    import pyarrow.parquet as pq

    run(images, extractor, tmp_path / "out", stopped=Stopped(2))
    table = pq.read_table(tmp_path / "out/index.parquet")
    assert table.column("id").to_pylist() == [f"{number}.png" for number in (0, 1, 2, 3, 5, 4)]
    assert table.column("status").to_pylist() == ["ok"] * 5 + ["failed"]


def test_a_finished_run_has_nothing_to_do_again(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    again = run(images, extractor, tmp_path / "out")
    assert (again.made, again.written, list(again.failed)) == (0, 9, ["4.png"])
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}


def test_a_model_that_fails_in_the_middle_leaves_what_came_before(tmp_path, images, extractor):
    torch.set_num_threads(1)  # for every run: several threads in one stream add up in another order
    failing, calls = copy.deepcopy(extractor), []

    def fail(*_) -> None:
        calls.append(1)
        if len(calls) == 5:  # the first is the one that tries the size
            raise RuntimeError("broken")

    failing.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        run(images, failing, tmp_path / "out", streams=1)
    left = contents(tmp_path / "out")
    assert 1 <= len(left) <= 2
    run(images, extractor, tmp_path / "out")
    whole = run(images, extractor, tmp_path / "whole")
    assert whole.written == 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "emptied", "other", "text", "swapped"])
def test_a_damaged_file_is_made_again(tmp_path, images, extractor, damage):
    run(images, extractor, tmp_path / "out")
    whole = contents(tmp_path / "out")
    path = tmp_path / "out/maps-000001.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "other":
        save_file({"blocks.5": torch.zeros(3)}, path)
    elif damage == "text":
        path.write_text("once upon a time there was a file of maps")
    else:
        path.write_bytes((tmp_path / "out/maps-000002.safetensors").read_bytes())
    assert run(images, extractor, tmp_path / "out").made == 1
    assert contents(tmp_path / "out") == whole


def test_a_damaged_description_is_refused(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    (tmp_path / "out/meta.json").write_text("{")
    with pytest.raises(OutputError, match=r"meta\.json does not describe an extraction that featx knows"):
        run(images, extractor, tmp_path / "out")


@pytest.mark.parametrize("name", ["maps-000001.safetensors", "meta.json", "index.parquet"])
def test_what_a_killed_run_left_of_a_file_is_removed(tmp_path, images, extractor, name):
    run(images, extractor, tmp_path / "out", stopped=Stopped(1))
    part = tmp_path / f"out/.{name}.some-machine-7.part"
    part.write_bytes(b"the first few byt")
    run(images, extractor, tmp_path / "out")
    assert not part.exists()
    assert not list((tmp_path / "out").glob(".*.part"))


def test_two_machines_may_write_the_same_shard_at_once(tmp_path, monkeypatch):
    def write() -> None:
        plan = plan_of("level", 2, 1).fingerprint
        write_shard(tmp_path, Shard(0, plan, ["level"], ["a"], ["a.png"], [(4, 4)], [None], [[torch.ones(2)]]))

    def on_another_machine(_) -> None:
        monkeypatch.setattr("featx.whole_files.to_disk", lambda _: None)
        monkeypatch.setattr("platform.node", lambda: "another")
        write()

    monkeypatch.setattr("featx.whole_files.to_disk", on_another_machine)  # before the first moves its file into place
    write()
    assert read_header(str(tmp_path / shard_name(0)), plan_of("level", 2, 1)).rows == 1
    assert [path.name for path in tmp_path.iterdir()] == [shard_name(0)]


def test_the_index_can_be_made_anew_from_the_files(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    made = (tmp_path / "out/index.parquet").read_bytes()
    (tmp_path / "out/index.parquet").unlink()
    assert write_index(tmp_path / "out") == 10
    assert (tmp_path / "out/index.parquet").read_bytes() == made


def test_an_index_of_a_folder_that_holds_no_maps_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"meta\.json does not exist: expected a folder that featx extract made"):
        write_index(tmp_path)


# images that failed


def test_images_that_failed_stay_failed_unless_they_are_to_be_tried_again(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    Image.new("RGB", (40, 40), "teal").save(images / "4.png")
    assert list(run(images, extractor, tmp_path / "out").failed) == ["4.png"]
    again = run(images, extractor, tmp_path / "out", retry_failed=True)
    assert (again.made, again.written, again.failed) == (1, 10, {})
    assert sorted(maps(tmp_path / "out")) == [f"{number}.png" for number in range(10)]


def test_too_many_failures_stop_a_run_that_can_be_resumed(tmp_path, images, extractor):
    with pytest.raises(featx.ImageError, match="1 images failed, more than the 0 allowed: finished files are kept"):
        run(images, extractor, tmp_path / "out", max_errors=0)
    assert 0 < len(contents(tmp_path / "out")) < 4
    assert run(images, extractor, tmp_path / "out", max_errors=1).written == 9


# what is refused


OTHER_OPTIONS = [
    ({"dtype": "float16"}, 'dtype: "float32" there, "float16" now'),
    ({"size": 64}, "size: 32 there, 64 now"),
    ({"keep_aspect": True}, "keep_aspect: false there, true now"),
    ({"scaled_decode": True}, "scaled_decode: false there, true now"),
    ({"pooling": "mean"}, '"pooling": "none"'),
    ({"name": "other"}, 'model: "MobileNetV3" there, "other" now'),
    ({"rows_per_shard": 4}, "rows per shard: 3 there, 4 now"),
    ({"runtime": "eager"}, 'runtime: "plain" there, "eager" now'),
]


@pytest.mark.parametrize(("options", "difference"), OTHER_OPTIONS, ids=lambda value: str(value)[:20])
def test_a_folder_made_with_other_options_is_refused_with_the_difference(
    tmp_path, images, extractor, options, difference
):
    run(images, extractor, tmp_path / "out", stopped=Stopped(1))
    before = contents(tmp_path / "out")
    message = "has other settings; name a new folder, or use the same settings:"
    with pytest.raises(OutputError, match=message) as refused:
        run(images, extractor, tmp_path / "out", **options)
    assert difference in str(refused.value)
    assert contents(tmp_path / "out") == before


def test_a_folder_made_with_other_weights_is_refused(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out", stopped=Stopped(1))
    other = copy.deepcopy(extractor)
    with torch.no_grad():
        other.get_submodule("conv_stem").weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(OutputError, match=r'weights: "[0-9a-f]{64}" there, "[0-9a-f]{64}" now'):
        run(images, other, tmp_path / "out")


def test_options_that_decide_no_numbers_may_change(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out", stopped=Stopped(1), workers=1)
    again = run(images, extractor, tmp_path / "out", workers=3, streams=2, rows_per_shard=None, recorded={"a": "b"})
    assert (again.made, again.left) == (3, 0)
    run(images, extractor, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("held", ["index.csv", ".hidden", "folder/file"])
def test_a_folder_that_holds_anything_else_is_refused_and_left_as_it_is(tmp_path, images, extractor, held):
    (tmp_path / "out" / held).parent.mkdir(parents=True)
    (tmp_path / "out" / held).write_text("mine")
    first = held.split("/")[0]
    with pytest.raises(OutputError, match=rf"out is not empty \({first}\): name a new folder"):
        run(images, extractor, tmp_path / "out")
    assert (tmp_path / "out" / held).read_text() == "mine"
    assert not contents(tmp_path / "out")


def test_an_empty_folder_is_taken(tmp_path, images, extractor):
    (tmp_path / "out").mkdir()
    assert run(images, extractor, tmp_path / "out").written == 9


# several runs


@pytest.mark.parametrize("held", [".lock-0-of-1", ".lock-1-of-2"])
def test_two_runs_at_once_in_a_folder_are_refused(tmp_path, images, extractor, held):
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / held),
        pytest.raises(OutputError, match=rf"another run is writing to .*out \({held} is held\): wait for it"),
    ):
        run(images, extractor, tmp_path / "out")
    assert run(images, extractor, tmp_path / "out").written == 9


def test_a_job_beside_others_of_another_number_is_refused(tmp_path, images, extractor):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock-0-of-3"):
        with pytest.raises(OutputError, match="another run is writing"):
            run(images, extractor, tmp_path / "out", shard="0/2")
        run(images, extractor, tmp_path / "out", shard="1/3")


@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_jobs_that_share_the_shards_together_give_what_one_run_gives(tmp_path, images, extractor, jobs):
    run(images, extractor, tmp_path / "whole")
    parts = [run(images, extractor, tmp_path / "out", shard=f"{job}/{jobs}") for job in range(jobs)]
    assert sum(part.made for part in parts) == 4
    assert sum(part.written for part in parts) == 9
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "out/meta.json").read_text())["shards"] == 4
    assert (tmp_path / "out/index.parquet").read_bytes() == (tmp_path / "whole/index.parquet").read_bytes()


def test_a_job_keeps_what_another_is_writing(tmp_path, images, extractor):
    (tmp_path / "out").mkdir()
    others = tmp_path / "out/.maps-000001.safetensors.some-machine-7.part"
    others.write_text("half of it")
    run(images, extractor, tmp_path / "out", shard="0/2")
    assert others.exists()


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "1/2/3", "0/0"])
def test_a_share_that_is_none_is_refused(tmp_path, images, extractor, shard):
    with pytest.raises(featx.ArgumentError, match=rf"shard='{shard}': expected i"):
        run(images, extractor, tmp_path / "out", shard=shard)


def test_the_rows_of_a_folder_are_distinguished_by_their_values(tmp_path, images, extractor):
    run(images, extractor, tmp_path / "out")
    stored = maps(tmp_path / "out")
    assert len(stored) == 9
    for id_ in stored:
        with torch.inference_mode():
            expected = extractor(featx.transform(extractor, size=SIZE)(Image.open(images / id_))[None])[1][0]
        differences = {other: (kept - expected).abs().max().item() for other, kept in stored.items()}
        assert min(differences, key=lambda other: differences[other]) == id_
        assert differences[id_] < 1e-4 * expected.abs().max()


def test_a_file_without_rows_can_be_read(tmp_path, images, extractor):
    for path in images.iterdir():
        path.write_text("no image")
    run(images, extractor, tmp_path / "out")
    assert load_file(tmp_path / "out/maps-000000.safetensors") == {}
    assert len(FeatureDataset(tmp_path / "out")) == 0
