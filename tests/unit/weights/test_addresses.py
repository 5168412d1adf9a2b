"""Weights from URLs."""

from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import save
from support.hub_server import Hub, Repository
from support.weight_places import REPO, kept, stored, tensors, values_from
from support.weight_places import published as published

from featx import ArgumentError, CheckpointError, WeightsNotFoundError


@pytest.fixture
def address(hub: Hub, published: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where files of the repository are, as if it were any server; downloads are kept in tmp_path / "torch"."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return f"{hub.endpoint}/{REPO}/resolve/main"


def test_an_address_is_fetched_once(hub, address, tmp_path):
    for _ in range(2):
        assert values_from(f"{address}/model.safetensors") == [1, 1]
    assert len(hub.requests) == 1
    assert kept(tmp_path / "torch" / "checkpoints") == ["model.safetensors"]


def test_addresses_are_kept_in_cache_dir(address, tmp_path):
    values_from(f"{address}/model.safetensors", cache_dir=tmp_path / "mine")
    assert kept(tmp_path / "mine") == ["model.safetensors"]
    assert not (tmp_path / "torch").exists()


def test_two_addresses_with_the_same_last_part_are_two_files(hub, address):
    hub.repositories["other/one"] = Repository({"model.safetensors": save(tensors(7))})
    assert values_from(f"{address}/model.safetensors") == [1, 1]
    assert values_from(f"{hub.endpoint}/other/one/resolve/main/model.safetensors") == [7, 7]
    assert values_from(f"{address}/model.safetensors") == [1, 1]


def test_a_hash_in_the_name_is_checked(published, address, tmp_path):
    data = published.files["model.safetensors"]
    right = f"tiny-{sha256(data).hexdigest()[:8]}.safetensors"
    published.files |= {right: data, "tiny-0123abcd.safetensors": data}
    assert values_from(f"{address}/{right}") == [1, 1]
    with pytest.raises(CheckpointError, match=r"not the file its name says: its SHA-256 begins with .*it was deleted"):
        values_from(f"{address}/tiny-0123abcd.safetensors")
    assert kept(tmp_path / "torch") == [right]


def test_a_date_in_the_name_is_no_hash(published, address):
    published.files["tiny-20230131.safetensors"] = published.files["model.safetensors"]
    assert values_from(f"{address}/tiny-20230131.safetensors") == [1, 1]


def test_names_in_other_scripts_and_queries_are_fetched(published, address):
    published.files["веса 1.safetensors"] = published.files["model.safetensors"]
    assert values_from(f"{address}/веса 1.safetensors") == [1, 1]
    assert values_from(f"{address}/%D0%B2%D0%B5%D1%81%D0%B0%201.safetensors") == [1, 1]


@pytest.mark.parametrize("fault", ["cut", "mute", "busy"])
def test_a_connection_that_breaks_leaves_nothing_that_is_trusted(published, address, tmp_path, fault):
    published.faults["model.safetensors"] = fault
    for _ in range(2):
        with pytest.raises(WeightsNotFoundError, match=r"could not fetch http.*model\.safetensors .*try again"):
            values_from(f"{address}/model.safetensors")
        assert kept(tmp_path / "torch") == []
    published.faults.clear()
    assert values_from(f"{address}/model.safetensors") == [1, 1]


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.npz", "w.ckpt"])
@pytest.mark.parametrize(
    ("fault", "kind", "problem"),
    [
        ("page", CheckpointError, r"gave 49 bytes that begin with b'<!DOCTYPE html>.*not kept: w\.\w+ is a web page"),
        ("halved", CheckpointError, r"gave \d+ bytes that begin with .*not kept: w\.\w+.* not a whole"),
        ("empty", WeightsNotFoundError, "the answer is empty"),
        ("part", WeightsNotFoundError, "the server answered with status 206"),
    ],
)
def test_an_answer_that_is_no_checkpoint_is_not_kept(published, address, tmp_path, name, fault, kind, problem):
    published.files[name] = stored(name)
    published.faults[name] = fault
    for _ in range(2):
        with pytest.raises(kind, match=problem):
            values_from(f"{address}/{name}")
        assert kept(tmp_path / "torch") == []
    published.faults.clear()
    assert values_from(f"{address}/{name}") == [1, 1]


def test_what_an_answer_is_instead_is_shown_on_one_line(published, address):
    published.files["w.pth"] = b'{"error":\n\x1b[31m"rate limit"}'
    with pytest.raises(CheckpointError, match=r"gave 28 bytes that begin with b.*error.*not kept") as refused:
        values_from(f"{address}/w.pth")
    assert "\x1b" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_address_of_nothing_is_not_found(address):
    with pytest.raises(WeightsNotFoundError, match=r"could not fetch .*none\.pth \(HTTP Error 404"):
        values_from(f"{address}/none.pth")


def test_a_server_that_does_not_answer_is_named(hub, address):
    hub.stop()
    with pytest.raises(WeightsNotFoundError, match=r"could not fetch .*refused"):
        values_from(f"{address}/model.safetensors")


@pytest.mark.parametrize("last", ["", "model", "index.html", "..", "download?file=model.pth", "a%00.pth", ".pth"])
def test_an_address_that_ends_in_no_file_of_weights_is_refused_before_it_is_fetched(hub, address, last):
    with pytest.raises(
        ArgumentError, match=r"names no file of weights: expected an address that ends in \.safetensors"
    ):
        values_from(f"{address}/{last}")
    assert hub.requests == []


def test_a_folder_for_downloads_that_cannot_be_made_is_an_error(address, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightsNotFoundError, match=r"could not fetch .*Not a directory"):
        values_from(f"{address}/model.safetensors", cache_dir=tmp_path / "file" / "cache")


def test_progress_is_shown_on_stderr_and_nothing_on_stdout(address, capfd):
    enable_progress_bars()  # which commands that ran in this process have switched off
    values_from(f"{address}/model.safetensors")
    shown = capfd.readouterr()
    assert "model.safetensors" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
