"""Weight files: all tensors fit, or nothing is loaded."""

import pickle

import pytest
import torch
from conftest import images, randomize, relative_difference, same_state
from safetensors.torch import save_file

import featx
from featx import CheckpointError, WeightsNotFoundError
from featx.weights.key_groups import find_group

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def trained():
    return randomize(featx.create_model(NAME), seed=5)


def save(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_every_kind_of_file_fills_the_model(trained, tmp_path, suffix):
    path = save(trained.state_dict(), tmp_path / f"w{suffix}")
    loaded = featx.create_model(NAME, checkpoint_path=str(path))
    assert same_state(loaded.state_dict(), trained.state_dict())


@pytest.mark.parametrize("out_indices", [None, [1], [2, 0]])
def test_a_full_checkpoint_fills_an_extractor(trained, tmp_path, out_indices):
    path = save(trained.state_dict(), tmp_path / "w.safetensors")
    loaded = featx.create_model(NAME, features_only=True, out_indices=out_indices, checkpoint_path=path).eval()
    expected = featx.FeatureExtractWrapper(trained, out_indices)
    with torch.no_grad():
        for a, b in zip(loaded(images()), expected(images()), strict=True):
            assert (
                relative_difference(a, b) <= 1e-5
            )  # memory that is mapped is aligned otherwise, sums are ordered so too


def test_an_extractors_checkpoint_fills_an_extractor_and_the_full_model(trained, tmp_path):
    extractor = featx.FeatureExtractWrapper(trained)
    path = save(extractor.state_dict(), tmp_path / "w.safetensors")
    again = featx.create_model(NAME, features_only=True, checkpoint_path=path)
    assert same_state(again.state_dict(), extractor.state_dict())
    full = featx.create_model(NAME)
    featx.load_weights(full, path, skip=("conv_head.", "classifier."))
    assert all(torch.equal(full.state_dict()[name], tensor) for name, tensor in extractor.state_dict().items())


def test_a_shallow_extractors_checkpoint_says_what_a_deeper_one_lacks(trained, tmp_path):
    path = save(featx.FeatureExtractWrapper(trained, [1]).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"missing    blocks.1.0.conv_pw.weight"):
        featx.create_model(NAME, features_only=True, out_indices=[2], checkpoint_path=path)


def test_all_that_does_not_fit_is_named_and_nothing_is_loaded(trained):
    model = featx.create_model(NAME)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrong = dict(trained.state_dict())
    del wrong["bn1.weight"], wrong["classifier.bias"]
    wrong["extra"] = torch.zeros(2)
    wrong["conv_stem.weight"] = torch.zeros(1, 2, 3)
    with pytest.raises(CheckpointError, match="4 tensors differ and none was loaded") as refused:
        featx.load_weights(model, wrong)
    for line in (
        "missing    bn1.weight (16,)",
        "missing    classifier.bias (1000,)",
        "unexpected extra (2,)",
        "misshaped  conv_stem.weight: (1, 2, 3), the model needs (16, 3, 3, 3)",
    ):
        assert line in str(refused.value)
    assert same_state(model.state_dict(), before)


def test_a_third_of_the_tensors_missing_is_refused(trained, tmp_path):
    state = {name: tensor for i, (name, tensor) in enumerate(trained.state_dict().items()) if i % 3}
    path = save(state, tmp_path / "w.safetensors")
    for features_only in (True, False):
        with pytest.raises(CheckpointError, match="missing"):
            featx.create_model(NAME, features_only=features_only, checkpoint_path=path)


def test_a_classifier_of_another_size_is_left_fresh_only_if_asked_for(trained, tmp_path):
    path = save(trained.state_dict(), tmp_path / "w.safetensors")
    ten = featx.create_model(NAME, num_classes=10, checkpoint_path=path)
    assert ten.classifier.weight.shape[0] == 10
    assert torch.equal(ten.conv_head.weight, trained.conv_head.weight)
    pooled = featx.create_model(NAME, num_classes=0, checkpoint_path=path)
    assert torch.equal(pooled.conv_head.weight, trained.conv_head.weight)
    ten_classes = save(ten.state_dict(), tmp_path / "ten.safetensors")
    again = featx.create_model(NAME, num_classes=10, checkpoint_path=ten_classes)
    assert torch.equal(again.classifier.weight, ten.classifier.weight)
    with pytest.raises(CheckpointError, match=r"misshaped  classifier.weight"):
        featx.create_model(NAME, checkpoint_path=ten_classes)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 1.0}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"model.backbone.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name.replace("blocks.", "blocks_", 1): tensor for name, tensor in state.items()},
    ],
    ids=["state_dict", "model", "module.", "_orig_mod.module.", "model.backbone.", "flattened"],
)
def test_names_that_other_programs_write_are_recognized(trained, tmp_path, wrapped):
    path = save(wrapped(trained.state_dict()), tmp_path / "w.pth")
    assert same_state(featx.create_model(NAME, checkpoint_path=path).state_dict(), trained.state_dict())


def test_without_auto_mapping_only_the_models_own_names_load(trained, tmp_path):
    path = save({f"module.{name}": tensor for name, tensor in trained.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"unexpected module.conv_stem.weight"):
        featx.create_model(NAME, checkpoint_path=path, auto_mapping=False)
    path = save(trained.state_dict(), tmp_path / "own.pth")
    assert same_state(
        featx.create_model(NAME, checkpoint_path=path, auto_mapping=False).state_dict(), trained.state_dict()
    )


def test_names_are_left_alone_where_the_model_has_them():
    wanted = {"model.a_0.weight": torch.zeros(1), "model.b": torch.zeros(1), "model._orig_mod.c": torch.zeros(1)}
    assert find_group(wanted, wanted, (), None).state == wanted


class RunsCode:
    def __reduce__(self):
        return print, ("this must not be printed",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"conv_stem.weight": RunsCode()}))
    with pytest.raises(CheckpointError, match="could run code"):
        featx.create_model(NAME, checkpoint_path=path)
    torch.save({"conv_stem.weight": RunsCode()}, path)
    with pytest.raises(CheckpointError, match="could run code"):
        featx.create_model(NAME, checkpoint_path=path)
    assert "must not" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("length", [0, 1, 7, 100, 5000, -1])
def test_a_file_cut_short_is_refused(trained, tmp_path, suffix, length):
    path = save(trained.state_dict(), tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"not a whole|or is damaged"):
        featx.create_model(NAME, checkpoint_path=path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"none.pt is not a file"):
        featx.create_model(NAME, checkpoint_path=tmp_path / "none.pt")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "w.tflite").write_bytes(b"?")
    with pytest.raises(CheckpointError, match="cannot tell what kind of file"):
        featx.create_model(NAME, checkpoint_path=tmp_path / "w.tflite")


@pytest.mark.parametrize(
    ("held", "problem"),
    [([1], "got a list"), ({"a": 1}, "'a': 'int'"), ({"net": {"a": torch.zeros(1)}}, r"they begin with \['a'\]")],
)
def test_what_holds_no_named_tensors_is_refused(tmp_path, held, problem):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=problem):
        featx.create_model(NAME, checkpoint_path=tmp_path / "w.pt")
