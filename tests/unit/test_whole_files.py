"""Files are written atomically, and only on this machine."""

import os
import re
import threading
from pathlib import Path

import pytest
import torch

import featx
from featx import OutputError
from featx.bulk import merge, write_index
from featx.bulk.converters import convert
from featx.whole_files import alone, local, new_file_or_folder, part_name, whole_file, workspace

ADDRESSES = ["s3://bucket/maps", "gs://bucket/maps", "hf://datasets/a/b", "memory://maps", "unknown://host/maps"]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_not_a_place_for_results(address, kind):
    with pytest.raises(
        OutputError, match=f"^{address} is an address, and results are written to paths of this machine"
    ):
        local(kind(address))


def test_an_address_of_this_machine_is_reported_as_the_path_to_name():
    with pytest.raises(
        OutputError, match="file:///tmp/maps is an address, and results are written to paths: name /tmp"
    ):
        local("file:///tmp/maps")


def test_a_folder_that_is_named_as_a_protocol_hides_no_address(tmp_path, monkeypatch):
    (tmp_path / "s3:").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="s3://bucket/maps is an address"):
        local(Path("s3://bucket/maps"))


@pytest.mark.parametrize("name", ["a:b", "s3:", "maps:/x", "./s3:/x", "C:/maps", "/tmp/http:/x", "2026-01-01T00:00:00"])
def test_a_name_with_a_colon_is_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps:").mkdir()
    assert local(name) == Path(name)


def test_a_name_with_nul_is_not_a_path():
    with pytest.raises(OutputError, match=r"'a\\x00b' is not a path"):
        local("a\0b")


@pytest.mark.parametrize("address", ["s3://bucket/out", Path("s3://bucket/out")])
def test_every_writer_refuses_an_address_before_it_does_anything(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = featx.create_model("test_efficientnet").eval()
    for write in (
        lambda: featx.extract("nowhere", featx.FeatureExtractWrapper(model), address),
        lambda: convert("nowhere", address, "npy"),
        lambda: merge(["nowhere"], address),
        lambda: write_index(address),
        lambda: featx.save(model, address),
        lambda: featx.export(featx.FeatureExtractWrapper(model), f"{address}.onnx"),
    ):
        with pytest.raises(OutputError, match=r"s3:/.* is an address"):
            write()
    assert not names(tmp_path)


def test_a_file_replaces_another_at_once_and_with_the_usual_rights(tmp_path):
    (tmp_path / "a").write_text("before")
    (tmp_path / "usual").touch()
    with whole_file(tmp_path / "a") as part:
        part.write_text("after")
        part.chmod(0o600)
        assert (tmp_path / "a").read_text() == "before"
    assert (tmp_path / "a").read_text() == "after"
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert names(tmp_path) == ["a", "usual"]


@pytest.mark.parametrize("kind", [whole_file, new_file_or_folder, workspace])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, kind, error):
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt

    def write() -> None:
        with kind(tmp_path / "a") as part:
            if kind is whole_file:
                part.write_text("half")
            else:
                part.mkdir(exist_ok=True)
                (part / "half").touch()
            raise error

    with pytest.raises(expected):
        write()
    assert not names(tmp_path)


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_appeared_meanwhile_is_not_replaced(tmp_path, is_folder):
    place = tmp_path / "a"

    def fill(path: Path, text: str) -> None:
        if is_folder:
            path.mkdir()
        (path / "b" if is_folder else path).write_text(text)

    def write() -> None:
        with new_file_or_folder(place) as part:
            fill(part, "mine")
            fill(place, "another program's")

    with pytest.raises(OutputError, match="a exists: name a new one"):
        write()
    assert (place / "b" if is_folder else place).read_text() == "another program's"
    assert names(tmp_path) == ["a"]


def test_two_writers_of_a_name_write_to_different_parts():
    assert part_name("a") != part_name("a")


def test_a_name_that_is_as_long_as_a_file_system_takes_can_be_written(tmp_path):
    place = tmp_path / ("a" * 255)
    with alone(place), whole_file(place) as part:
        part.write_text("whole")
    assert place.read_text() == "whole"


def test_only_parts_of_the_same_name_are_removed(tmp_path):
    others = [part_name("maps.npy"), part_name("maps.parquet"), ".maps.part", ".maps.mine.part", "maps.part"]
    for name in (part_name("maps"), part_name("maps"), *others):
        (tmp_path / name).touch()
    with alone(tmp_path / "maps"):
        assert set(names(tmp_path)) - {".maps.lock"} == {*others}
    assert set(names(tmp_path)) == {*others}


@pytest.mark.parametrize("name", ["a[1]", "a*", "(a|b)", "ä ö"])
def test_names_that_are_patterns_are_names(tmp_path, name):
    (tmp_path / part_name(name)).touch()
    (tmp_path / part_name("a1")).touch()
    with alone(tmp_path / name):
        pass
    assert [re.match(r"\.a1\.", left) is not None for left in names(tmp_path)] == [True]


def test_models_saved_by_threads_into_one_folder_are_never_mixed(tmp_path):
    models = [featx.create_model("test_efficientnet", num_classes=classes) for classes in (3, 5)]
    saving = [threading.Thread(target=featx.save, args=(model, tmp_path / "m")) for model in models * 3]
    for thread in saving:
        thread.start()
    for thread in saving:
        thread.join()
    assert names(tmp_path / "m") == ["config.json", "model.safetensors"]
    made = featx.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    state = made.state_dict()
    wanted = [model.state_dict() for model in models if model.config.num_classes == made.config.num_classes]
    assert all(torch.equal(tensor, state[name]) for name, tensor in wanted[0].items())


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / part_name(name)).touch()
    featx.save(featx.create_model("test_efficientnet"), tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
