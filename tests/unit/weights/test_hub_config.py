"""Hub repositories whose configuration names a model."""

import json

import pytest
import torch
from conftest import randomize
from safetensors.torch import save
from support.hub_server import Repository
from support.weight_places import NAME, REPO
from torch import Tensor

import featx
from featx import ArgumentError, CheckpointError, UnknownModelError

PREPROCESSING = {"input_size": [3, 96, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.5}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return randomize(featx.create_model(NAME, num_classes=3, in_chans=1)).state_dict()


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


def test_without_pretrained_a_repository_gives_the_model_and_no_weights_are_fetched(hub):
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


def test_an_architecture_that_nobody_has_is_named_with_its_repository(hub):
    hub.repositories[REPO] = Repository({"config.json": described(architecture="swim_tiny_patch4")})
    with pytest.raises(
        UnknownModelError, match=rf"hf-hub:{REPO} names a model that neither featx nor timm has: .*'swim_tiny_patch4'"
    ):
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
