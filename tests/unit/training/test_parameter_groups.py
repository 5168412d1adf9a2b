"""Parameter groups with layer-wise learning rates."""

import pytest
import timm
import torch
from conftest import random_extractor
from support.training_steps import NAMES
from timm.optim import param_groups_layer_decay
from torch import nn

import featx
from featx import training


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_every_trained_parameter_is_in_one_group(name, layer_decay):
    model = random_extractor(name)
    training.freeze(model, 0)
    groups = training.param_groups(model, 0.1, layer_decay=layer_decay, lr=layer_decay and 1e-3)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    torch.optim.AdamW(groups, lr=1e-3)


def by_name(model, groups, key):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (row["weight_decay"], pytest.approx(row[key])) for row in groups for p in row["params"]}


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit2", "test_vit3"])
def test_groups_of_a_vit_are_timms(architecture):
    model = timm.create_model(architecture)
    theirs = param_groups_layer_decay(model, 0.1, model.no_weight_decay(), layer_decay=0.7)
    ours = training.param_groups(model, 0.1, layer_decay=0.7, lr=1.0)
    ours, theirs = by_name(model, ours, "lr"), by_name(model, theirs, "lr_scale")
    # the norm after the blocks goes with the head here, as BEiT has it, and with the last block there
    behind = {"norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias"}
    assert {n: v for n, v in ours.items() if n not in behind} == {n: v for n, v in theirs.items() if n not in behind}


def test_our_vit_is_grouped_as_timms():
    name = "vit_wee_patch16_reg1_gap_256"
    with torch.device("meta"):
        models = featx.create_model(name), timm.create_model(name)
    ours, theirs = (by_name(m, training.param_groups(m, 0.1, layer_decay=0.7, lr=1.0), "lr") for m in models)
    assert ours == theirs


def test_rates_rise_by_level_and_end_at_lr():
    model = random_extractor("resnet18")
    groups = by_name(model, training.param_groups(model, 0.1, layer_decay=0.5, lr=1.0), "lr")
    paths = ("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer4.0.conv1")
    assert [groups[f"{path}.weight"][1] for path in paths] == [0.5**4, 0.5**3, 0.5**2, 1.0]


def test_what_is_around_the_backbone_has_the_full_rate():
    model = nn.Sequential(random_extractor("resnet18"), nn.Conv2d(512, 2, 1))
    groups = by_name(model, training.param_groups(model, 0.1, layer_decay=0.5, lr=1.0), "lr")
    assert groups["1.weight"][1] == 1.0
    assert groups["0.layer4.1.conv2.weight"][1] == 0.5


def test_biases_scales_positions_and_tokens_do_not_decay():
    model = featx.create_model("vit_tiny_patch16_224")
    still, decayed = training.param_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert still["weight_decay"] == 0.0
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= {names[id(p)] for p in still["params"]}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}


def test_further_names_can_be_spared():
    model = featx.create_model("resnet18")
    still, _ = training.param_groups(model, 0.1, no_decay=["fc.weight"])
    assert any(p is model.fc.weight for p in still["params"])
    with pytest.raises(featx.ArgumentError, match=r"\['fd.weight'\]"):
        training.param_groups(model, 0.1, no_decay=["fd.weight"])


def test_a_layer_decay_that_an_optimizer_would_ignore_is_refused():
    with pytest.raises(featx.ArgumentError, match="lr go together"):
        training.param_groups(featx.create_model("resnet18"), 0.1, layer_decay=0.7)
