"""Custom networks, as in examples/own_backbone.py: the three structures that a backbone can have."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import images, randomize
from safetensors.torch import save_file
from torch import nn

import featx
from featx import ArgumentError, CheckpointError, ContractError, WeightsNotFoundError

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_backbone.py"
NAMES = ["dummynet18", "dummynet34", "dummynet50"]


@pytest.fixture(autouse=True)
def example(own_registry):
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_by_name_with_maps_in_order(name):
    backbone = randomize(featx.create_model(name, features_only=True, out_indices=[1, 0]))
    deeper, shallower = backbone(images())
    for feature_map, level in zip((deeper, shallower), backbone.feature_info, strict=True):
        assert feature_map.shape == (2, level.chs, 64 // level.reduction, 96 // level.reduction)
    assert backbone.feature_info.reduction() == ([16, 4] if name == "dummynet50" else [4, 2])


def test_three_levels_are_asked_for_as_the_guide_does():
    backbone = featx.create_model("dummynet18", features_only=True, out_indices=[0, 1, 2])
    assert [m.shape[1] for m in backbone(images())] == [16, 32, 64]


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_the_plain_network(name, example):
    extractor = randomize(featx.create_model(name, features_only=True))
    plain = featx.create_model(name).eval()
    assert not plain.load_state_dict(extractor.state_dict(), strict=False).unexpected_keys
    names = [level.name for level in extractor.feature_info]
    seen = {}
    for path in names:
        plain.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: seen.update({path: out.clone()}))
    with torch.no_grad():
        plain(images())
        assert all(torch.equal(a, seen[path]) for a, path in zip(extractor(images()), names, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_without_features_only_it_is_the_plain_network(name):
    assert featx.create_model(name, num_classes=5)(images()).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_it_passes_verify(name):
    assert featx.verify(featx.create_model(name, features_only=True)).levels


def test_channels_are_passed_under_the_name_the_function_has():
    assert featx.create_model("dummynet18", in_chans=1)(torch.zeros(2, 1, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_listed_as_giving_maps(name):
    assert name in featx.list_models(features_only=True)


def test_a_function_that_takes_no_features_only_is_not_listed_as_giving_maps():
    @featx.register_model
    def plainnet(pretrained=False):
        return nn.Conv2d(3, 4, 1)

    assert "plainnet" in featx.list_models()
    assert "plainnet" not in featx.list_models(features_only=True)
    with pytest.raises(ArgumentError, match="plainnet has no argument 'features_only'"):
        featx.create_model("plainnet", features_only=True)


def test_a_function_that_ignores_features_only_is_found_out():
    @featx.register_model
    def carelessnet(pretrained=False, **kwargs):
        return nn.Conv2d(3, 4, 1)

    with pytest.raises(ContractError, match="carelessnet returned a Conv2d although features_only=True"):
        featx.create_model("carelessnet", features_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_of_the_full_network_and_of_the_extractor_load_into_either(name, tmp_path):
    full = randomize(featx.create_model(name))
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    if name != "dummynet50":  # its rewritten class has the head too
        extractor = featx.create_model(name, features_only=True, checkpoint_path=tmp_path / "full.safetensors").eval()
        save_file(extractor.state_dict(), tmp_path / "maps.safetensors")
        again = featx.create_model(name, features_only=True, checkpoint_path=tmp_path / "maps.safetensors").eval()
        assert all(torch.equal(a, b) for a, b in zip(extractor(images()), again(images()), strict=True))
        with pytest.raises(CheckpointError, match=r"missing    head.2.weight"):
            featx.create_model(name, checkpoint_path=tmp_path / "maps.safetensors")
        whole = featx.create_model(name)
        featx.load_weights(whole, tmp_path / "maps.safetensors", skip=("head.",))
    else:
        whole = featx.create_model(name, features_only=True, checkpoint_path=tmp_path / "full.safetensors")
    shared = whole.state_dict().keys() - {"head.2.weight", "head.2.bias"}
    assert all(torch.equal(whole.state_dict()[key], full.state_dict()[key]) for key in shared)


def test_pretrained_without_a_source_says_where_to_name_one():
    with pytest.raises(WeightsNotFoundError, match="default_cfg of DummyNet1 names no weights"):
        featx.create_model("dummynet18", pretrained=True)


def test_default_cfg_names_a_file_and_the_images_it_expects(example, tmp_path):
    full = example["DummyNet1"]()
    save_file(full.state_dict(), tmp_path / "w.safetensors")
    cfg = {"file": tmp_path / "w.safetensors", "input_size": (3, 96, 128), "mean": (0.5, 0.5, 0.5), "crop_pct": 1.0}
    built = featx.build_model_with_cfg(example["DummyNet1"], True, default_cfg=cfg, features_only=True)
    assert torch.equal(built.layer1[0].weight, full.layer1[0].weight)
    assert built.data_config == featx.DataConfig(size=(96, 128), mean=(0.5, 0.5, 0.5), crop=1.0)


def test_a_rewritten_network_must_return_one_map_per_row(example):
    class Short(example["DummyFeatureNet3"]):
        def forward_features(self, x):
            return super().forward_features(x)[:1]

    with pytest.raises(ContractError, match=r"Short.forward_features returned 1 maps; expected .* each of the 2 rows"):
        featx.FeatureExtractWrapper(Short())(images())


def test_a_rewritten_network_must_return_a_list(example):
    class Single(example["DummyFeatureNet3"]):
        def forward_features(self, x):
            return super().forward_features(x)[0]

    with pytest.raises(ContractError, match="returned a Tensor; expected a list"):
        featx.FeatureExtractWrapper(Single())(images())


def test_a_rewritten_network_must_have_forward_features():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.feature_info, model.is_rewritten = [{"chs": 4, "reduction": 1, "name": "0"}], True
    with pytest.raises(ContractError, match="has no forward_features"):
        featx.FeatureExtractWrapper(model)


def test_the_example_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE)])
    featx.registry._models.clear()
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "layers.1: 32 channels at 1/4, (2, 32, 56, 80)" in capsys.readouterr().out
