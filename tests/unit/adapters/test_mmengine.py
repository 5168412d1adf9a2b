"""Backbones built from configurations by MMEngine."""

import copy
import pickle
import sys

import pytest
import torch
from conftest import images, randomize
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import Registry
from support.adapters import BACKBONES, assert_close, assert_trains, reloaded, side
from torch import nn

import featx
from featx.adapters import mmengine as adapter


@pytest.fixture
def registry():
    made = Registry("models")
    adapter.register(made)
    return made


def build(registry, name="resnet18", out_indices=(1, 2, 3), **arguments):
    torch.manual_seed(0)
    config = {"type": "FeatxBackbone", "model": name, "out_indices": out_indices, **arguments}
    backbone = registry.build(config)
    backbone.init_weights()
    return backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_train_and_keep_their_numbers_through_a_file(registry, name):
    backbone, x = build(registry, name), images(2, 3, side(name), side(name))
    assert isinstance(backbone, BaseModule)
    maps = backbone.train()(x)
    assert isinstance(maps, tuple)
    assert [map_.shape[1] for map_ in maps] == adapter.channels(name, (1, 2, 3))
    assert_trains(backbone, sum(map_.square().mean() for map_ in maps))
    again = reloaded(backbone, build(registry, name))
    for ours, map_ in zip(again(x), backbone.eval()(x), strict=True):
        assert_close(ours, map_)


@pytest.mark.parametrize(("frozen_stages", "first_trained"), [(-1, "conv1"), (0, "layer1"), (1, "layer2"), (3, None)])
def test_stages_are_frozen_up_to_that_level_through_train(registry, frozen_stages, first_trained):
    backbone = build(registry, frozen_stages=frozen_stages).train()
    trained = [name for name, p in backbone.body.named_parameters() if p.requires_grad]
    assert (trained[0].partition(".")[0] if trained else None) == first_trained
    for name, module in backbone.body.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == any(p.requires_grad for p in module.parameters()), name


def test_norms_in_eval_keep_their_statistics_and_train_their_scales(registry):
    backbone = build(registry, norm_eval=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    assert backbone.training


def test_pretrained_is_loaded_by_featx_under_any_prefix(registry, tmp_path):
    plain = randomize(featx.create_model("resnet18"))
    state = {f"backbone.{name}": value for name, value in plain.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "detector.pth")
    init = {"type": "Pretrained", "checkpoint": str(tmp_path / "detector.pth")}
    backbone = build(registry, init_cfg=init)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in backbone.body.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_an_error_and_not_a_line_in_a_log(registry, tmp_path):
    torch.save({"conv9.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(featx.CheckpointError):
        build(registry, init_cfg={"type": "Pretrained", "checkpoint": str(tmp_path / "other.pth")})


def test_initializing_a_whole_model_leaves_the_backbones_values(registry):
    class Model(BaseModel):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def forward(self, inputs):
            return self.backbone(inputs)

    backbone = randomize(build(registry))
    before = copy.deepcopy(backbone.state_dict())
    Model(backbone).init_weights()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("init", [{"type": "Kaiming", "layer": "Conv2d"}, {"type": "Pretrained"}])
def test_other_initializations_are_refused(registry, init):
    with pytest.raises(featx.ArgumentError, match="expected dict"):
        build(registry, init_cfg=init)


def test_further_arguments_are_those_of_create_model(registry):
    backbone = build(registry, output_stride=8, in_chans=4)
    assert [map_.shape[-1] for map_ in backbone(images(2, 4, 64, 64))] == [16, 8, 8]


def test_backbones_are_pickled(registry):
    backbone = build(registry, frozen_stages=1).eval()
    again = pickle.loads(pickle.dumps(backbone))
    assert_close(again(images())[-1], backbone(images())[-1])


def test_a_missing_package_is_named(monkeypatch):
    adapter._class.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mmengine", None)
    with pytest.raises(featx.MissingPackageError, match="onedl-mmengine"):
        adapter.register(None)
