"""Stochastic depth: branches that are dropped at random in training."""

import pytest
import torch
from conftest import SMALL, assert_same, random_extractor
from support.training_steps import batch

import featx
from featx import training
from featx.models.layers.drop_path import DropPath


def rates(model):
    return {path: module.rate for path, module in model.named_modules() if isinstance(module, DropPath)}


@pytest.mark.parametrize("name", [name for name in SMALL if not name.startswith("hrnet")])  # which has no such field
def test_branches_are_dropped_as_the_family_itself_would(name):
    with torch.device("meta"):
        reference = featx.create_model(name, drop_path_rate=0.3, features_only=True)
        model = featx.create_model(name, features_only=True)
    training.drop_path(model, 0.3)
    assert rates(model) == rates(reference)
    assert max(rates(model).values()) > 0.2
    training.drop_path(model, 0)
    assert not rates(model)


def test_dropping_keeps_names_and_the_values_in_eval():
    model = random_extractor("convnext_atto")
    keys, before = list(model.state_dict()), model(batch(model))
    training.drop_path(model, 0.5)
    assert list(model.state_dict()) == keys
    assert_same(before, model(batch(model)))
    assert not torch.equal(before[-1], model.train()(batch(model))[-1])


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(featx.ArgumentError, match="less than 1"):
        training.drop_path(random_extractor("convnext_atto"), rate)


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18"])
def test_other_packages_models_take_their_rate_when_they_are_created(name):
    with pytest.raises(featx.ArgumentError, match="create_model"):
        training.drop_path(random_extractor(name), 0.1)
