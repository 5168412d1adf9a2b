"""Frozen parts of a model do not change in training."""

import copy
import pickle

import pytest
import torch
from conftest import images, random_extractor, randomize
from support.training_steps import NAMES, batch, step
from torch import nn
from torchvision.ops import misc

import featx
from featx import training
from featx.necks import FPN, Pipeline


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("name", NAMES)
def test_exactly_what_the_level_needs_is_frozen(name):
    model = random_extractor(name)
    training.freeze(model, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    alone = random_extractor(name, out_indices=[1])
    assert frozen == {name for name, _ in alone.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_level_does_not_change_in_training(name):
    model = random_extractor(name)
    x = batch(model)
    training.freeze(model, 1)
    before = [map_.detach().clone() for map_ in model(x)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    step(model, x)
    optimizer.step()
    after = model.eval()(x)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[-1], after[-1])


def test_the_level_may_be_named_and_counted_from_the_deepest():
    named, counted = random_extractor("resnet18"), random_extractor("resnet18")
    training.freeze(named, "layer3")
    training.freeze(counted, -2)
    frozen = [[p.requires_grad for p in model.parameters()] for model in (named, counted)]
    assert frozen[0] == frozen[1]
    assert not frozen[0][0]
    assert frozen[0][-1]


def test_an_index_counts_all_levels_of_the_backbone_as_out_indices_does():
    model = random_extractor("resnet18", out_indices=[2, 4])
    training.freeze(model, 2)
    assert not model.get_parameter("layer2.0.conv1.weight").requires_grad
    assert model.get_parameter("layer3.0.conv1.weight").requires_grad


@pytest.mark.parametrize("level", [7, "layer9"])
def test_a_level_that_does_not_exist_is_refused(level):
    with pytest.raises(featx.OutIndicesError, match="layer4"):
        training.freeze(random_extractor("resnet18"), level)


def test_a_level_that_was_cut_off_is_refused():
    with pytest.raises(featx.OutIndicesError, match="deepest is level 2"):
        training.freeze(random_extractor("resnet18", out_indices=[2]), 3)


def test_the_backbone_is_found_inside_whatever_is_around_it():
    plain = random_extractor("resnet18", out_indices=[1, 2])
    around = nn.ModuleDict({"detector": Pipeline(plain, FPN(plain.feature_info, 8))})
    training.freeze(around, 1)
    frozen = [name for name, p in around.named_parameters() if not p.requires_grad]
    assert frozen[0] == "detector.backbone.conv1.weight"
    assert frozen[-1].startswith("detector.backbone.layer1.1")


def test_a_model_without_levels_is_refused():
    with pytest.raises(featx.ContractError, match="features_only=True"):
        training.freeze(nn.Linear(2, 2), 0)


def test_several_backbones_are_ambiguous():
    with pytest.raises(featx.ArgumentError, match=r"several.*\['0', '1'\]"):
        training.freeze(nn.Sequential(random_extractor("resnet18"), random_extractor("resnet18")), 0)


def test_without_a_level_all_of_the_model_is_frozen():
    model = featx.create_model("resnet18")
    training.freeze(model)
    model.train()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, pickled], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", ["resnet18", "timm/test_vit"])
def test_copies_stay_frozen_on_their_own(name, again):
    model = random_extractor(name)
    training.freeze(model, 1)
    copied = again(model)
    training.unfreeze(model)
    copied.train()
    frozen = {path for path, module in copied.named_modules() if not module.training}
    assert frozen
    training.unfreeze(copied)
    assert all(module.training == copied.training for module in copied.modules())


def test_names_in_the_state_dict_stay():
    model = random_extractor("resnet18")
    before = list(model.state_dict())
    training.freeze(model, 2)
    training.freeze_norms(model)
    training.recompute(model, model.feature_info.names())
    assert list(model.state_dict()) == before


def test_unfreezing_undoes_all_of_it():
    model = random_extractor("resnet18").train()
    training.freeze_norms(model)
    training.freeze(model, 3)
    training.unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_norms_keep_their_statistics(affine):
    model = random_extractor("resnet18")
    training.freeze_norms(model, affine=affine)
    before = [norm.running_mean.clone() for norm in norms(model)]
    step(model, batch(model))
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms(model), before, strict=True))
    assert all((norm.weight.grad is None) == affine for norm in norms(model))
    assert model.layer1.training


def test_norms_without_statistics_are_not_touched():
    model = random_extractor("convnext_atto")
    training.freeze_norms(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.train().modules())


def test_torchvisions_frozen_norm_agrees():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    randomize(model)
    reference = misc.FrozenBatchNorm2d(4)
    reference.load_state_dict(model[1].state_dict())
    training.freeze_norms(model)
    x = images(2, 3, 8, 8)
    torch.testing.assert_close(model.train()(x), reference(model[0](x)))  # the same formula in another order


def test_a_frozen_model_compiles_whole(tolerant_of_torch):
    model = random_extractor("resnet18", out_indices=[1]).train()
    training.freeze(model, 0)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = batch(model)
    torch.testing.assert_close(compiled(x)[0], model(x)[0])
