"""create_model(..., pretrained=True) and featx.weights.hub, against a Hub on the loopback interface."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest
import safetensors.torch
import torch
from conftest import images, randomize
from support.hub_server import Hub, Repository, serve
from support.untrusted_files import saved
from torch import Tensor, nn

import featx
from featx import CheckpointError, DataConfig, FeatxError, UnknownModelError, WeightsNotFoundError
from featx.weights.hub import download, hub_config

NAME = "mobilenetv3_small_050"  # the fastest
REPO = f"timm/{NAME}.lamb_in1k"
HEAD = "classifier."

PREPROCESSING = {
    "input_size": [3, 160, 192],
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bilinear",
    "crop_pct": 0.75,
    "crop_mode": "squash",
}


def weights(name: str = NAME, **given: int) -> dict[str, Tensor]:
    return randomize(featx.create_model(name, **given)).state_dict()


def config(num_classes: int = 1000) -> bytes:
    return json.dumps({"num_classes": num_classes, "pretrained_cfg": PREPROCESSING}).encode()


def publish(hub: Hub, state: dict[str, Tensor], repo: str = REPO, num_classes: int = 1000) -> Repository:
    files = {"config.json": config(num_classes), "model.safetensors": safetensors.torch.save(state)}
    return hub.repositories.setdefault(repo, Repository(files))


def assert_holds(model: nn.Module, state: Mapping[str, Tensor], but: str = "-") -> None:
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(but)}
    assert own
    assert [name for name, tensor in own.items() if not torch.equal(tensor, state[name])] == []


def test_the_default_tag_gives_exactly_the_tensors_of_the_file(hub):
    state = weights("resnet18")
    publish(hub, state, "timm/resnet18.a1_in1k")
    model = featx.create_model("resnet18", pretrained=True)
    assert model.state_dict().keys() == state.keys()
    assert_holds(model, state)


def test_a_tag_chooses_the_repository(hub):
    state = weights("resnet18")
    publish(hub, weights("resnet18"), "timm/resnet18.a1_in1k")
    publish(hub, state, "timm/resnet18.gluon_in1k")
    assert_holds(featx.create_model("resnet18.gluon_in1k", pretrained=True), state)
    assert {request.split("/")[2] for request in hub.requests if "/resolve/" in request} == {"resnet18.gluon_in1k"}


@pytest.mark.parametrize("features_only", [False, True])
def test_the_preprocessing_is_what_config_json_says(hub, features_only):
    publish(hub, weights())
    model = featx.create_model(NAME, pretrained=True, features_only=features_only)
    assert model.data_config == DataConfig((160, 192), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.75, "squash")


def test_an_extractor_has_the_same_tensors_as_the_file(hub):
    state = weights()
    publish(hub, state)
    extractor = featx.create_model(NAME, pretrained=True, features_only=True)
    assert_holds(extractor, state)
    assert state.keys() - extractor.state_dict().keys() == {
        f"{module}.{kind}" for module in ("conv_head", "classifier") for kind in ("weight", "bias")
    }  # behind the deepest map


def test_the_weights_decide_the_number_of_classes(hub):
    state = weights(num_classes=10)
    publish(hub, state, num_classes=10)
    model = featx.create_model(NAME, pretrained=True).eval()
    assert_holds(model, state)
    assert model(images(1, 3, 32, 32)).shape == (1, 10)


def test_another_number_of_classes_gives_a_fresh_head_initialized_as_the_family_does(hub):
    state = weights()
    publish(hub, state)
    torch.manual_seed(3)
    model = featx.create_model(NAME, pretrained=True, num_classes=5)
    assert_holds(model, state, but=HEAD)
    fresh = model.classifier
    torch.manual_seed(3)
    model.reset_classifier(5)
    assert_holds(fresh, model.classifier.state_dict())
    assert model.load_report.fresh == (f"{HEAD}weight", f"{HEAD}bias")

    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_the_same_number_of_classes_keeps_the_head(hub):
    state = weights()
    publish(hub, state)
    assert_holds(featx.create_model(NAME, pretrained=True, num_classes=1000), state)


def test_no_classes_give_pooled_features(hub):
    state = weights()
    publish(hub, state)
    model = featx.create_model(NAME, pretrained=True, num_classes=0).eval()
    assert model.state_dict().keys() == {name for name in state if not name.startswith(HEAD)}
    assert_holds(model, state)
    assert model(images(1, 3, 32, 32)).shape == (1, state[f"{HEAD}weight"].shape[1])


def test_cache_dir_is_where_files_are_kept(hub, tmp_path):
    publish(hub, weights())
    featx.create_model(NAME, pretrained=True, cache_dir=tmp_path / "elsewhere")
    kept = {path.name for path in (tmp_path / "elsewhere").glob("*/snapshots/*/*")}
    assert kept == {"config.json", "model.safetensors"}
    assert not (tmp_path / "cache").exists()


def test_a_pickle_serves_where_there_is_no_safetensors(hub):
    state = weights()
    hub.repositories[REPO] = Repository({"config.json": config(), "pytorch_model.bin": saved(state)})
    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_a_cached_pickle_serves_without_the_hub(hub):
    state = weights()
    hub.repositories[REPO] = Repository({"config.json": config(), "pytorch_model.bin": saved(state)})
    featx.create_model(NAME, pretrained=True)
    hub.stop()
    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_safetensors_are_found_after_they_replaced_a_cached_pickle(hub):
    state = weights()
    repository = hub.repositories[REPO] = Repository({"config.json": config(), "pytorch_model.bin": saved(weights())})
    featx.create_model(NAME, pretrained=True)
    repository.files = {"config.json": config(), "model.safetensors": safetensors.torch.save(state)}
    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_a_repository_without_weights_is_an_error(hub):
    hub.repositories[REPO] = Repository({"config.json": config(), "weights.h5": b""})
    with pytest.raises(WeightsNotFoundError, match=rf"{REPO} has none of .*model\.safetensors.*pytorch_model\.bin"):
        featx.create_model(NAME, pretrained=True)


def test_a_repository_without_config_is_an_error(hub):
    del publish(hub, weights()).files["config.json"]
    with pytest.raises(WeightsNotFoundError, match=rf"{REPO} has no config\.json"):
        featx.create_model(NAME, pretrained=True)


def test_an_absent_repository_is_named(hub):
    with pytest.raises(WeightsNotFoundError, match=f"no repository {REPO}, or it is private: set HF_TOKEN"):
        featx.create_model(NAME, pretrained=True)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_asks_to_accept_its_terms(hub, status):
    publish(hub, weights()).refusal = status
    with pytest.raises(WeightsNotFoundError, match=f"{REPO} is gated: accept its terms on the Hub, then set HF_TOKEN"):
        featx.create_model(NAME, pretrained=True)


def test_an_unreachable_hub_without_a_cached_file_says_what_else_to_pass(hub):
    hub.stop()
    with pytest.raises(
        WeightsNotFoundError, match=r"cannot reach the Hub for config\.json .*refused.*checkpoint_path="
    ):
        featx.create_model(NAME, pretrained=True)


def test_an_overloaded_hub_says_what_else_to_pass(hub):
    publish(hub, weights()).faults["model.safetensors"] = "busy"
    with pytest.raises(WeightsNotFoundError, match=r"cannot reach the Hub for model\.saf.*503.*checkpoint_path="):
        featx.create_model(NAME, pretrained=True)


def test_cached_files_serve_when_the_hub_is_unreachable(hub):
    state = weights()
    publish(hub, state)
    featx.create_model(NAME, pretrained=True)
    hub.stop()
    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_offline_mode_uses_the_cache_and_asks_nothing(hub, monkeypatch):
    state = weights()
    publish(hub, state)
    featx.create_model(NAME, pretrained=True)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_holds(featx.create_model(NAME, pretrained=True), state)
    with pytest.raises(WeightsNotFoundError, match=r"HF_HUB_OFFLINE.*not in the cache"):
        featx.create_model("resnet18", pretrained=True)
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["cut", "halved", "mute"])
def test_a_download_that_breaks_off_leaves_nothing_that_is_trusted(hub, fault):
    state = weights()
    repository = publish(hub, state)
    repository.faults["model.safetensors"] = fault
    for _ in range(2):
        with pytest.raises(WeightsNotFoundError, match=rf"could not fetch model\.safetensors of {REPO} .*try again"):
            featx.create_model(NAME, pretrained=True)
    repository.faults.clear()
    assert_holds(featx.create_model(NAME, pretrained=True), state)


def test_a_cache_that_cannot_be_written_is_an_error(hub, tmp_path):
    publish(hub, weights())
    (tmp_path / "file").touch()
    with pytest.raises(WeightsNotFoundError, match=r"could not fetch config\.json.*Not a directory"):
        hub_config(REPO, cache_dir=tmp_path / "file" / "cache")


def test_weights_with_missing_tensors_are_refused_with_a_list(hub):
    state = weights()
    missing = [name for name in state if not name.endswith("num_batches_tracked")][::3]
    publish(hub, {name: tensor for name, tensor in state.items() if name not in missing})
    with pytest.raises(CheckpointError, match=f"{len(missing)} tensors differ and none was loaded") as caught:
        featx.create_model(NAME, pretrained=True)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12
    *listed, more = [line for line in lines if line.startswith("  missing ")]
    assert [line.split()[1] for line in listed] == missing[: len(listed)]
    assert more.endswith(f"and {len(missing) - len(listed)} more")


def test_a_model_without_published_weights_says_so(hub):
    with pytest.raises(WeightsNotFoundError, match="mobilenetv3_large_075 has no published weights: pass checkpoint"):
        featx.create_model("mobilenetv3_large_075", pretrained=True)
    assert hub.requests == []


def test_an_unknown_tag_lists_the_tags_there_are(hub):
    with pytest.raises(UnknownModelError, match=r"resnet18 has no weights tagged 'none_in1k'.*'a1_in1k'.*'gluon_in1k'"):
        featx.create_model("resnet18.none_in1k", pretrained=True)
    assert hub.requests == []


@pytest.mark.parametrize("text", [b"<html>", b"", b"\xff\xfe\x00"])
def test_a_config_that_is_not_json_is_a_checkpoint_error(hub, text):
    publish(hub, weights()).files["config.json"] = text
    with pytest.raises(CheckpointError, match=rf"config\.json of {REPO} is not JSON"):
        featx.create_model(NAME, pretrained=True)


@pytest.mark.parametrize("text", [b"[1]", b"null", b'{"pretrained_cfg": null}'])
def test_a_config_of_another_shape_is_a_checkpoint_error(hub, text):
    publish(hub, weights()).files["config.json"] = text
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        featx.create_model(NAME, pretrained=True)


def test_every_file_of_a_repository_can_be_downloaded(hub):
    hub.repositories["someone/theirs"] = Repository({"README.md": b"words"})
    assert download("someone/theirs", "README.md").read_bytes() == b"words"
    with pytest.raises(FeatxError, match=r"someone/theirs has no LICENSE"):
        download("someone/theirs", "LICENSE")


def test_the_environment_variables_of_the_hub_are_obeyed(tmp_path):
    script = (
        "import sys, featx, safetensors.torch as files\n"
        f"files.save_file(featx.create_model({NAME!r}, pretrained=True).state_dict(), sys.argv[1])"
    )
    state, saved = weights(), tmp_path / "saved.safetensors"
    others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with serve() as hub:
        publish(hub, state)
        environment = others | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": f"{tmp_path / 'home'}", "NO_PROXY": "127.0.0.1"}
        subprocess.run([sys.executable, "-c", script, f"{saved}"], check=True, env=environment, timeout=120)
    loaded = safetensors.torch.load_file(saved)
    assert loaded.keys() == state.keys()
    assert [name for name in state if not torch.equal(loaded[name], state[name])] == []
    assert [path.name for path in (tmp_path / "home" / "hub").glob("models--*")] == [
        "models--" + REPO.replace("/", "--")
    ]
