"""Weights from folders and memory, and containers in training checkpoints."""

import re

import pytest
import torch
from safetensors.torch import save
from support.weight_places import INDEX, NAME, Tiny, sharded, tensors, values_from, write
from torch import nn

import featx
from featx import CheckpointError, FeatxError, WeightsNotFoundError

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


def test_what_is_not_a_tensor_in_memory_is_named():
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
        ({"teacher": {f"backbone.{n}": t for n, t in tensors().items()}, "student": tensors(2)}, "teacher.backbone"),
        (
            {"net": tensors(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]}},
            None,
        ),
        ({"student": {"model_state": tensors()}, "epoch": 3}, None),
        ({**tensors(), "epoch": 3, "arch": "tiny", "best": None}, None),
        ({"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in tensors().items()}}, None),
    ],
)
def test_containers_are_opened(tmp_path, checkpoint, container):
    torch.save(checkpoint, tmp_path / "w.pt")
    assert values_from(tmp_path / "w.pt", container=container) == [1, 1]
    assert values_from(checkpoint, container=container) == [1, 1]


def test_entries_beside_the_tensors_are_reported():
    report = featx.load_weights(Tiny(), {**tensors(), "epoch": 3, "n_averaged": {}})
    assert report.skipped == {"epoch": "not a tensor", "n_averaged": "not a tensor"}


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


@pytest.mark.parametrize(
    ("checkpoint", "containers"),
    [
        ({"teacher": tensors(), "student": tensors()}, ["teacher", "student"]),
        (
            {f"module.{part}.{n}": t for part in ("encoder_q", "encoder_k") for n, t in tensors().items()},
            ["module.encoder_q", "module.encoder_k"],
        ),
        (
            {f"{part}._fsdp_wrapped_module.net.{n}": t for part in ("ema", "raw") for n, t in tensors().items()},
            ["ema.net", "raw.net"],
        ),
        (
            {"model": {f"{part}.backbone.{n}": t for part in ("teacher", "student") for n, t in tensors().items()}},
            ["teacher.backbone", "student.backbone"],
        ),
    ],
)
def test_of_several_parts_that_fit_none_is_guessed_and_each_can_be_chosen(checkpoint, containers):
    with pytest.raises(CheckpointError, match=r"under one of .*, say which with container=") as refused:
        values_from(checkpoint)
    listed = re.findall("'([^']+)'", str(refused.value))
    assert listed == containers
    assert [values_from(checkpoint, container=name) for name in listed] == [[1, 1]] * len(listed)


PREFIXES = (
    "module.", "_orig_mod.", "model.backbone.module._orig_mod.", "net.", "trunk.", "a.b.c.d.e.",
    "model.feature_extractor.feature_extractor.", "_fsdp_wrapped_module.net._fsdp_wrapped_module.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_that_all_names_share_are_removed(prefix):
    assert values_from({f"{prefix}{name}": tensor for name, tensor in tensors().items()}) == [1, 1]


@pytest.mark.parametrize(
    "prefix", ["backbone.", "encoder.", "backbone.0.body.", "backbone.body.backbone.", "encoder.model."]
)
def test_a_backbone_in_a_detector_is_found_and_the_rest_reported(prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in tensors().items()}
    others = {"head.weight": torch.zeros(4), "neck.bias": torch.zeros(4)}
    report = featx.load_weights(Tiny(), {**others, **state})
    assert report.loaded == ("a", "b")
    assert report.skipped == dict.fromkeys(others, f"outside {prefix[:-1]}")
    assert report.notes == (f"names are without their prefix {prefix}",)


def test_names_of_nested_dictionaries_are_bounded():
    """Few bytes can describe a dictionary whose entries share dictionaries that do so again."""
    shared = {"w": torch.ones(1)}
    for _ in range(3):
        shared = {str(i): shared for i in range(300)}
    with pytest.raises(CheckpointError, match=r"at most 20000, got 20001 entries"):
        values_from({"outer": shared})


@pytest.mark.parametrize("where", ["", "none.pt", "local-dir:none", {}, {"a": 1}, "{hub}/w.pth"], ids=str)
def test_errors_of_every_source_are_of_featx(tmp_path, monkeypatch, hub, where):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeatxError):
        featx.load_weights(Tiny(), where.format(hub=hub.endpoint) if isinstance(where, str) else where)
