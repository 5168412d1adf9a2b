"""Where weights are taken from: the Hub, addresses, folders, memory, and containers in training checkpoints."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import randomise
from hub_server import Hub, Repository, commit, serve
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import load_file, save
from torch import Tensor, nn

import featx
from featx import ArgumentError, CheckpointError, FeatxError, UnknownModelError, WeightsNotFoundError
from featx.weights.shards import shard_names

NAME = "mobilenetv3_small_050"
REPO = "someone/theirs"
INDEX = "model.safetensors.index.json"
PREPROCESSING = {"input_size": [3, 96, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.5}


class Tiny(nn.Module):
    """Two tensors, so that a repository of it is a few bytes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {"a": torch.full((2,), float(value)), "b": torch.full((3,), float(value))}


def sharded(value: float = 1.0, **shards: dict[str, Tensor]) -> dict[str, bytes]:
    """The files of weights in two shards, or in those given."""
    state = tensors(value)
    shards = shards or {"one": {"a": state["a"]}, "two": {"b": state["b"]}}
    index = {"weight_map": {name: f"{shard}.safetensors" for shard, held in shards.items() for name in held}}
    files = {f"{shard}.safetensors": save(held) for shard, held in shards.items()}
    return {INDEX: json.dumps(index).encode(), **files}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def values_from(where: str | Path | dict, **how) -> list[float]:
    """The two values of a Tiny that took its weights from there."""
    model = Tiny()
    report = featx.load_weights(model, where, **how)
    assert report.loaded == ("a", "b")
    return [model.a[0].item(), model.b[0].item()]


@pytest.fixture
def published(hub: Hub) -> Repository:
    repository = hub.repositories[REPO] = Repository({"model.safetensors": save(tensors())})
    return repository


# repositories that name a model


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return randomise(featx.create_model(NAME, num_classes=3, in_chans=1)).state_dict()


def described(**more) -> bytes:
    config = {"architecture": NAME, "num_classes": 3, "pretrained_cfg": PREPROCESSING, "model_args": {"in_chans": 1}}
    return json.dumps({**config, **more}).encode()


def test_a_repository_names_its_model_with_classes_fields_labels_and_preprocessing(hub, trained):
    labels = ["cat", "dog", "owl"]
    hub.repositories[REPO] = Repository(
        {"config.json": described(label_names=labels), "model.safetensors": save(trained)}
    )
    model = featx.create_model(f"hf-hub:{REPO}", pretrained=True)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())
    assert model.label_names == ("cat", "dog", "owl")
    assert model.in_chans == 1
    assert (model.data_config.size, model.data_config.mean, model.data_config.crop) == ((96, 64), (0.1, 0.2, 0.3), 0.5)


def test_without_pretrained_a_repository_gives_the_model_and_no_weights_are_fetched(hub, trained):
    hub.repositories[REPO] = Repository({"config.json": described()})
    model = featx.create_model(f"hf-hub:{REPO}", features_only=True, out_indices=[1])
    assert model.in_chans == 1
    assert model.data_config.size == (96, 64)
    assert not [request for request in hub.requests if "config.json" not in request]


def test_a_repository_as_a_name_is_kept_in_cache_dir_alone(hub, trained, tmp_path):
    hub.repositories[REPO] = Repository({"config.json": described(), "model.safetensors": save(trained)})
    featx.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path / "mine")
    kept = {path.name for path in (tmp_path / "mine").glob("*/snapshots/*/*")}
    assert kept == {"config.json", "model.safetensors"}
    assert not (tmp_path / "cache").exists()


def test_a_repository_as_a_name_has_revisions(hub):
    trees = {name: {"config.json": described(num_classes=n)} for n, name in enumerate(("main", "v2", "v3"), 4)}
    hub.repositories[REPO] = Repository(trees["main"], revisions=trees)
    for revision in ("main", "v2", "v3"):
        model = featx.create_model(f"hf-hub:{REPO}@{revision}")
        assert model.classifier.out_features == {"main": 4, "v2": 5, "v3": 6}[revision]


def test_an_architecture_that_is_not_native_is_named_with_its_repository(hub, monkeypatch):
    monkeypatch.setattr("featx.factory.spellings", lambda name: [f"timm/{name}"])
    hub.repositories[REPO] = Repository({"config.json": described(architecture="swin_tiny_patch4_window7_224")})
    with pytest.raises(UnknownModelError, match=rf"hf-hub:{REPO} .*not native.*'timm/swin_tiny_patch4_window7_224'"):
        featx.create_model(f"hf-hub:{REPO}")


def test_a_config_of_another_library_says_to_name_the_model(hub):
    config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}
    hub.repositories[REPO] = Repository({"config.json": json.dumps(config).encode()})
    with pytest.raises(CheckpointError, match=r"no architecture.*create_model\(name, checkpoint_path='hf-hub:someone"):
        featx.create_model(f"hf-hub:{REPO}")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"model_args": {"stem": 3, "wings": 2}}, r"model_args that this family lacks: \['stem', 'wings'\]"),
        ({"model_args": []}, r"in which model_args is an object; got \{'model_args': \[\]\}"),
        ({"num_classes": "ten"}, "num_classes is a number"),
        ({"label_names": 3}, "label_names is a list"),
        ({"featx": 1}, "featx is an object"),
        ({"pretrained_cfg": 1, "model_args": 2}, "pretrained_cfg is an object, model_args is an object"),
    ],
)
def test_a_config_made_to_do_harm_is_refused(hub, wrong, problem):
    hub.repositories[REPO] = Repository({"config.json": described(**wrong)})
    with pytest.raises(CheckpointError, match=problem):
        featx.create_model(f"hf-hub:{REPO}")


def test_a_config_nested_too_deeply_is_refused(hub):
    hub.repositories[REPO] = Repository({"config.json": b"[" * 100_000})
    with pytest.raises(CheckpointError, match=r"config\.json of someone/theirs is not JSON"):
        featx.create_model(f"hf-hub:{REPO}")


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:one", "hf-hub:a/b/c", "hf-hub:a/b c", "hf-hub:../b", "hf-hub:a/b--c"]
)
def test_what_names_no_repository_is_refused(hub, name):
    with pytest.raises(ArgumentError, match=r"names no repository|cannot be the name of a repository"):
        featx.create_model(name)
    assert hub.requests == []


# repositories as places of weights


def test_weights_of_a_repository_fill_any_model(published):
    assert values_from(f"hf-hub:{REPO}") == [1, 1]


def test_a_repository_is_a_checkpoint_path_without_a_config(hub):
    state = randomise(featx.create_model(NAME)).state_dict()
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
def test_what_is_no_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text)
    with pytest.raises(CheckpointError, match=r'expected \{"weight_map"'):
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


def test_a_download_that_was_cut_goes_on_where_it_ended(hub, published, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1)
    size = len(published.files["model.safetensors"])
    published.faults["model.safetensors"] = "cut once"
    assert values_from(f"hf-hub:{REPO}") == [1, 1]
    assert hub.ranges == [f"bytes={size // 2}-"]


def test_a_file_of_other_content_is_deleted_and_fetched_again(published, tmp_path):
    published.faults["model.safetensors"] = "altered"
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors of {REPO} was damaged on its way: .*try again"):
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
    state = randomise(featx.create_model(NAME)).state_dict()
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


# addresses


@pytest.fixture
def address(hub: Hub, published: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where files of the repository are, as if it were any server; downloads are kept in tmp_path / "torch"."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    return f"{hub.endpoint}/{REPO}/resolve/main"


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*") if path.is_file())


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


# folders and memory


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_gives_the_file_of_weights_in_it(tmp_path, suffix, prefix):
    if suffix == "bin":
        torch.save(tensors(), tmp_path / "pytorch_model.bin")
    else:
        write(tmp_path, {"model.safetensors": save(tensors())})
    assert values_from(f"{prefix}{tmp_path}") == [1, 1]


def test_paths_are_taken_as_text_and_as_objects(tmp_path):
    write(tmp_path, {"w.safetensors": save(tensors())})
    assert values_from(tmp_path / "w.safetensors") == values_from(str(tmp_path / "w.safetensors")) == [1, 1]


def test_a_folder_or_its_index_gives_the_shards(tmp_path):
    write(tmp_path, sharded(5))
    assert values_from(tmp_path) == values_from(tmp_path / INDEX) == [5, 5]


def test_all_shards_that_a_folder_lacks_are_named(tmp_path):
    write(tmp_path, {INDEX: sharded()[INDEX]})
    with pytest.raises(WeightsNotFoundError, match=r"not beside it: \['one\.safetensors', 'two\.safetensors'\]"):
        values_from(tmp_path)


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("", "is not a folder with one of .*model.safetensors"),
        ("none", "is not a file of weights or a folder with them"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_what_is_not_there_is_named(tmp_path, place, problem, prefix):
    with pytest.raises(WeightsNotFoundError, match=problem) as refused:
        values_from(f"{prefix}{tmp_path / place}")
    assert str(tmp_path / place) in str(refused.value)


def test_a_folder_without_a_config_names_no_model(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"config\.json is not a file: expected a folder that featx\.save"):
        featx.create_model(f"local-dir:{tmp_path}")


def test_a_model_shares_no_memory_with_the_callers_tensors():
    given = {name: tensor.clone() for name, tensor in featx.create_model(NAME).state_dict().items()}
    expected = {name: tensor.clone() for name, tensor in given.items()}
    for model in (featx.create_model(NAME, checkpoint_path=given), featx.create_model(NAME)):
        featx.load_weights(model, given)
        for tensor in given.values():
            tensor.zero_()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        given.update((name, tensor.clone()) for name, tensor in expected.items())


def test_a_models_own_parameters_fill_another_whose_gradients_are_its_own():
    source = featx.create_model(NAME)
    model = featx.create_model(
        NAME, checkpoint_path={**dict(source.named_parameters()), **dict(source.named_buffers())}
    )
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in model.parameters())
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    assert all(parameter.grad is None for parameter in source.parameters())


def test_what_is_no_tensor_in_memory_is_named():
    with pytest.raises(CheckpointError, match="'b': 'ndarray'"):
        values_from({"a": torch.zeros(2), "b": torch.zeros(3).numpy()})


# containers


@pytest.mark.parametrize(
    ("checkpoint", "container"),
    [
        ({"state_dict": tensors()}, None),
        ({"model": tensors(), "optimizer": {"lr": 1}, "epoch": 3}, None),
        ({"state_dict": {"model": tensors()}}, None),
        ({"model": {"state_dict": tensors()}}, "model"),
        ({"model": tensors(2), "model_ema": tensors()}, "model_ema"),
        ({"model": tensors(2), "ema": {"state_dict": tensors(), "decay": 0.9}}, "ema"),
        ({"state_dict": tensors(2), "state_dict_ema": tensors()}, "state_dict_ema"),
        ({"teacher": tensors(), "student": tensors(2)}, "teacher"),
        ({"teacher": {f"backbone.{n}": t for n, t in tensors().items()}, "student": tensors(2)}, "teacher"),
        ({f"student.{n}": t for n, t in tensors().items()} | {"teacher.a": torch.zeros(9)}, "student"),
        (
            {"state_dict": {f"teacher.module.{n}": t for n, t in tensors().items()} | {"student.a": torch.ones(2)}},
            "teacher",
        ),
        ({"model": {"teacher": tensors(), "student": tensors(2)}}, "teacher"),
    ],
)
def test_containers_are_opened(tmp_path, checkpoint, container):
    torch.save(checkpoint, tmp_path / "w.pt")
    assert values_from(tmp_path / "w.pt", container=container) == [1, 1]
    assert values_from(checkpoint, container=container) == [1, 1]


@pytest.mark.parametrize(
    ("checkpoint", "there"),
    [
        ({"model": tensors(), "epoch": 3}, r"\['a', 'b', 'epoch', 'model'\]"),
        ({"teacher": tensors(), "student": tensors()}, r"\['student', 'teacher'\]"),
        ({"state_dict": {"net.a": torch.ones(2), "head.b": torch.ones(2)}}, r"\['head', 'net', 'state_dict'\]"),
    ],
)
def test_a_container_that_is_missing_is_answered_with_those_there_are(checkpoint, there):
    with pytest.raises(CheckpointError, match=f"no container 'model_ema'; the checkpoint has {there}"):
        values_from(checkpoint, container="model_ema")


def test_teacher_and_student_are_not_guessed():
    with pytest.raises(CheckpointError, match=r"under one of \['teacher', 'student'\], say which with container="):
        values_from({"teacher": tensors(), "student": tensors()})


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "backbone.", "model.", "encoder.", "visual_encoder.", "model.backbone.module._orig_mod."],
)
def test_prefixes_that_all_names_share_are_taken_off(prefix):
    assert values_from({f"{prefix}{name}": tensor for name, tensor in tensors().items()}) == [1, 1]


@pytest.mark.parametrize("prefix", ["backbone.", "encoder.", "visual_encoder.", "model.backbone."])
def test_a_backbone_inside_a_detector_is_found_and_the_rest_reported(prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in tensors().items()}
    others = {"head.weight": torch.zeros(4), "neck.bias": torch.zeros(4)}
    report = featx.load_weights(Tiny(), {**others, **state})
    assert report.loaded == ("a", "b")
    assert report.skipped == dict.fromkeys(others, f"outside {prefix[:-1]}")


def test_errors_of_every_source_are_of_featx(tmp_path):
    for where in (tmp_path, tmp_path / "none.pt", "local-dir:none", {}, {"a": 1}, "http://127.0.0.1:9/w.pth"):
        with pytest.raises(FeatxError):
            featx.load_weights(Tiny(), where)
