"""Weights from the Hub: revisions, shards, access, and failing downloads."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import randomize
from safetensors.torch import load_file, save
from support.hub_server import Repository, commit, serve
from support.weight_places import INDEX, NAME, REPO, Tiny, sharded, tensors, values_from, write
from support.weight_places import published as published

import featx
from featx import CheckpointError, WeightsNotFoundError
from featx.weights.hub import shard_names

# repositories as places of weights


def test_weights_of_a_repository_fill_any_model(published):
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


def test_a_repository_is_a_checkpoint_path_without_a_config(hub):
    state = randomize(featx.create_model(NAME)).state_dict()
    hub.repositories[REPO] = Repository({"model.safetensors": save(state)})
    model = featx.create_model(NAME, checkpoint_path=f"hf-hub:{REPO}")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_branches_tags_and_commits_pin_what_is_loaded(published):
    old, new = {"model.safetensors": save(tensors(2))}, {"model.safetensors": save(tensors(3))}
    published.revisions = {"v1.0": old, "experiment": new}
    assert values_from(f"hf-hub:{REPO}") == [1, 1]
    assert values_from(f"hf-hub:{REPO}@v1.0") == [2, 2]
    assert values_from(f"hf-hub:{REPO}@experiment") == [3, 3]
    assert values_from(f"hf-hub:{REPO}@{commit(old)}") == [2, 2]
    published.revisions["v1.0"] = new
    assert values_from(f"hf-hub:{REPO}@{commit(old)}") == [2, 2]
    assert values_from(f"hf-hub:{REPO}@v1.0") == [3, 3]


def test_a_commit_in_the_cache_is_read_without_asking_the_hub(hub, published):
    where = f"hf-hub:{REPO}@{commit(published.files)}"
    assert values_from(where) == [1, 1]
    hub.requests.clear()
    assert values_from(where) == [1, 1]
    assert hub.requests == []


def test_an_unknown_revision_is_named(published):
    with pytest.raises(WeightsNotFoundError, match=f"{REPO} has no revision 'v9'"):
        values_from(f"hf-hub:{REPO}@v9")


def test_shards_are_put_together(hub):
    hub.repositories[REPO] = Repository(sharded(4))
    assert values_from(f"hf-hub:{REPO}") == [4, 4]
    hub.stop()
    assert values_from(f"hf-hub:{REPO}") == [4, 4]  # from the cache


def test_a_shard_that_the_repository_lacks_is_named(hub):
    files = sharded()
    del files["two.safetensors"]
    hub.repositories[REPO] = Repository(files)
    with pytest.raises(WeightsNotFoundError, match=rf"{REPO} has no two\.safetensors"):
        values_from(f"hf-hub:{REPO}")


def test_two_shards_with_one_tensor_are_refused(hub, tmp_path):
    files = sharded(one=tensors(1), two=tensors(2))
    files[INDEX] = json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode()
    hub.repositories[REPO] = Repository(files)
    for where in (f"hf-hub:{REPO}", write(tmp_path / "w", files)):
        with pytest.raises(
            CheckpointError, match=r"two\.safetensors holds tensors that another shard holds too: \['a', 'b'"
        ):
            values_from(where)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "a\\b.pt",
        "a\0.pt",
        "..\\x.pt",
        3,
        None,
    ],
)
def test_an_index_that_lists_files_elsewhere_is_refused(hub, tmp_path, name):
    files = {INDEX: json.dumps({"weight_map": {"a": name}}).encode()}
    write(tmp_path, {"secret.safetensors": save(tensors())})
    hub.repositories[REPO] = Repository(files)
    for where in (f"hf-hub:{REPO}", write(tmp_path / "w", files)):
        with pytest.raises(CheckpointError, match="expected names of files beside it"):
            values_from(where)


@pytest.mark.parametrize(
    "text",
    [b"", b"<html>", b"\xff", b"[]", b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": [1]}}', b"[" * 100_000],
)
def test_what_is_not_a_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(CheckpointError, match=r'expected \{"weight_map"|is not JSON|files beside it, got \[1\]'):
        shard_names(tmp_path / INDEX)


def test_an_index_of_nothing_is_refused(tmp_path):
    (tmp_path / INDEX).write_bytes(b'{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="files beside it, got none"):
        values_from(tmp_path)


# access


def test_a_private_repository_looks_absent_without_its_token(published):
    published.token = "hf_mine"
    with pytest.raises(WeightsNotFoundError, match=f"no repository {REPO}, or it is private: set HF_TOKEN"):
        values_from(f"hf-hub:{REPO}")


@pytest.mark.parametrize("place", ["variable", "file"])
def test_a_private_repository_opens_to_the_users_token(published, tmp_path, monkeypatch, place):
    published.token = "hf_mine"
    if place == "variable":
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
    else:
        (tmp_path / "token").write_text("hf_mine")
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


def test_a_wrong_token_is_as_good_as_none(published, monkeypatch):
    published.token = "hf_mine"
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(WeightsNotFoundError, match="or it is private: set HF_TOKEN"):
        values_from(f"hf-hub:{REPO}")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_what_to_accept(published, status):
    published.refusal = status
    with pytest.raises(WeightsNotFoundError, match=f"{REPO} is gated: accept its terms"):
        values_from(f"hf-hub:{REPO}")


# downloads that go wrong


def test_a_download_that_was_cut_resumes_where_it_ended(hub, published, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1)
    size = len(published.files["model.safetensors"])
    published.faults["model.safetensors"] = "cut once"
    assert values_from(f"hf-hub:{REPO}") == [1, 1]
    assert hub.ranges == [f"bytes={size // 2}-"]


def test_a_file_of_other_content_is_deleted_and_fetched_again(published, tmp_path):
    published.faults["model.safetensors"] = "altered"
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=rf"model\.safetensors of {REPO} was corrupted during the download: .*try again"
        ):
            values_from(f"hf-hub:{REPO}")
        assert [path for path in (tmp_path / "cache").glob("**/blobs/*") if path.is_file()] == []
    published.faults.clear()
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


def test_a_file_in_the_cache_is_not_hashed_again(published, monkeypatch):
    values_from(f"hf-hub:{REPO}")
    monkeypatch.setattr("featx.weights.hub.sha256_of", lambda path: pytest.fail("hashed"))
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


@pytest.mark.parametrize("fault", ["cut", "halved", "mute"])
def test_nothing_half_written_serves_without_the_hub(hub, published, fault):
    published.faults["model.safetensors"] = fault
    with pytest.raises(WeightsNotFoundError, match="try again"):
        values_from(f"hf-hub:{REPO}")
    hub.stop()
    with pytest.raises(WeightsNotFoundError, match="not in the cache"):
        values_from(f"hf-hub:{REPO}")


def test_a_shard_that_breaks_off_loads_nothing(hub):
    repository = hub.repositories[REPO] = Repository(sharded(), faults={"two.safetensors": "cut"})
    model = Tiny()
    with pytest.raises(WeightsNotFoundError, match=r"could not fetch two\.safetensors"):
        featx.load_weights(model, f"hf-hub:{REPO}")
    assert model.a.tolist() == [0, 0]
    repository.faults.clear()
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


def test_offline_the_cache_serves_and_what_is_not_in_it_is_named(hub, published, monkeypatch):
    values_from(f"hf-hub:{REPO}")
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert values_from(f"hf-hub:{REPO}") == [1, 1]
    with pytest.raises(WeightsNotFoundError, match=r"HF_HUB_OFFLINE.*not in the cache"):
        values_from("hf-hub:someone/elses")
    assert hub.requests == []


def test_the_endpoint_and_the_offline_switch_are_the_environments(tmp_path):
    script = (
        "import os, sys, featx\n"
        f"featx.save(featx.create_model('hf-hub:{REPO}@v1', pretrained=True), sys.argv[1])\n"
        "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = True\n"
        "try: featx.create_model('hf-hub:someone/elses')\n"
        "except featx.WeightsNotFoundError as error: print(error)"
    )
    state = randomize(featx.create_model(NAME)).state_dict()
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with serve() as hub:
        files = {"config.json": json.dumps({"architecture": NAME}).encode(), "model.safetensors": save(state)}
        hub.repositories[REPO] = Repository({}, revisions={"v1": files})
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": f"{tmp_path / 'home'}", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", script, f"{tmp_path / 'saved'}"]
        ran = subprocess.run(command, check=True, env=others | variables, timeout=120, capture_output=True, text=True)
    assert "not in the cache" in ran.stdout
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())
