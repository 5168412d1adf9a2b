"""Training, copying, compilation and export of extractors of timm's models."""

import copy

import pytest
import torch
from conftest import COPIES, assert_same, images, randomize
from support.timm_extractors import KINDS, batch, built, extractor, maps_of

import featx
from featx.bridges import timm as bridge


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_gradient_checkpointing_that_was_enabled_before_changes_no_gradient(name):
    plain = built(name, drop_rate=0.0)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    gradients = []
    for model in (plain, saving):
        taken = extractor(model, [2, 1])
        x = batch(bridge.pyramid(model)).requires_grad_()
        sum(map_.square().mean() for map_ in taken(x)).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in taken.parameters())])
    assert_same(*gradients)


@pytest.mark.parametrize("name", ["test_vit", "hrnet_w18_small"])
@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_of_an_extractor_is_independent(name, copied):
    taken = extractor(built(name), [1])
    x = batch(taken, 1)
    before = maps_of(taken, x)
    twin = copied(taken)
    assert_same(maps_of(twin, x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(maps_of(taken, x), before)


def test_a_model_that_keeps_computed_values_is_wrapped_without_them():
    model = built("levit_128s")
    model(images(1, 3, 224, 224))  # in eval mode it keeps biases, with their graph, which nothing can copy
    tuned = randomize(bridge.build("levit_128s"), seed=1)
    taken = extractor(model, [0])
    featx.load_weights(taken, tuned.state_dict())
    assert_same(maps_of(taken, images(1, 3, 224, 224)), maps_of(extractor(tuned, [0]), images(1, 3, 224, 224)))


def test_training_mode_follows_the_wrapper():
    taken = extractor(built("test_resnet")).train()
    assert all(module.training for module in taken._inner._inner.modules())
    assert not any(module.training for module in taken.eval().modules())


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", KINDS)
def test_compiles_whole(name):
    torch._dynamo.reset()
    taken = extractor(built(name), [2, 0])
    x = batch(taken, 1)
    compiled = torch.compile(taken, fullgraph=True, backend="eager")
    assert_same(maps_of(compiled, x), maps_of(taken, x))


@pytest.mark.usefixtures("tolerant_of_torch")
@pytest.mark.parametrize("name", KINDS)
def test_exports_with_the_names_of_the_model(name):
    model = built(name)
    taken = extractor(model, [2, 0])
    x = batch(taken, 1)
    exported = torch.export.export(taken, (x,))
    assert_same(maps_of(exported.module(), x), maps_of(taken, x))
    assert exported.state_dict.keys() <= model.state_dict().keys()


def test_an_architecture_that_looks_at_values_is_measured_with_them():
    class Looks(type(bridge.build("test_resnet"))):
        def forward_intermediates(self, x, *args, **kwargs):
            assert x.sum().item() == 0
            return super().forward_intermediates(x, *args, **kwargs)

    model = bridge.build("test_resnet")
    model.__class__ = Looks
    assert bridge.pyramid(model).feature_info == bridge.pyramid(bridge.build("test_resnet")).feature_info
    with pytest.raises(featx.ContractError, match="build it on another device"):
        bridge.pyramid(model.to("meta"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_needed_is_cut_where_gradients_are_off(mode):
    model = built("hrnet_w18_small")
    with mode():
        taken = extractor(model, [1])
    assert list(taken.state_dict()) == list(extractor(model, [1]).state_dict())
    x = images(1, 3, 64, 64)
    assert_same(maps_of(taken, x), maps_of(extractor(model, [1]), x))


def test_nothing_needed_is_cut_where_checkpointing_hides_parameters(monkeypatch):
    monkeypatch.setattr("timm.layers.config._USE_REENTRANT_CKPT", True)
    model = built("test_resnet")
    expected = list(extractor(model, [1]).state_dict())
    model.set_grad_checkpointing()
    assert list(extractor(model, [1]).state_dict()) == expected
