"""Fusing the branches of RepVGG's blocks."""

import copy
import pickle

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference
from timm.utils.model import reparameterize_model
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.models.repvgg import RepVGGBlock, reparameterize

# Plain, with groups, with channel attention: the block's three forms, at sizes that take no time.
NAMES = ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se"]
SLIM = {"depths": (1, 2, 3, 1), "widths": (0.5, 0.5, 0.5, 1.0)}


def build(name: str, **kwargs) -> nn.Module:
    return randomize(featx.create_model(name, **SLIM, **kwargs))


@pytest.fixture(params=NAMES)
def repvgg(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


@torch.no_grad()
def outputs(model: nn.Module) -> list[torch.Tensor]:
    x = images().to(next(model.parameters()).dtype)
    return [model(x), *FeatureExtractWrapper(model)(x)]


@pytest.mark.parametrize(
    ("output_stride", "dtype", "tolerance"), [(32, torch.float32, 1e-5), (8, torch.float64, 1e-10)]
)
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_maps_stay_the_same(name, output_stride, dtype, tolerance):
    model = build(name, output_stride=output_stride).to(dtype)
    before = outputs(model)
    reparameterize(model)
    for after, reference in zip(outputs(model), before, strict=True):
        assert relative_difference(after, reference) <= tolerance


def test_each_block_is_left_with_one_convolution(repvgg):
    blocks = [module for module in repvgg.modules() if isinstance(module, RepVGGBlock)]
    reparameterize(repvgg)
    assert len(blocks) == 8
    for block in blocks:
        (conv,) = [
            module for module in block.modules() if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        ]
        assert conv.kernel_size == (3, 3)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())


def test_names_weights_and_logits_of_a_published_variant_are_those_of_timms_fused_model():
    reference = randomize(timm.create_model("repvgg_a0"))
    model = featx.create_model("repvgg_a0").eval()
    model.load_state_dict(reference.state_dict())
    fused = reparameterize_model(reference)
    with torch.no_grad():
        before = model(images())
        reparameterize(model)
        assert relative_difference(model(images()), before) <= 1e-5
        assert relative_difference(fused(images()), before) <= 1e-5
    assert list(model.state_dict()) == list(fused.state_dict())
    for key, tensor in fused.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, msg=key)


def test_one_block_can_be_fused_alone(repvgg):
    before = outputs(repvgg)
    repvgg.get_submodule("stages.1.1").reparameterize()
    assert "stem.conv_kxk.conv.weight" in repvgg.state_dict()
    assert max(relative_difference(a, b) for a, b in zip(outputs(repvgg), before, strict=True)) <= 1e-5


def test_training_mode_is_refused_before_anything_changes(repvgg):
    names = list(repvgg.state_dict())
    repvgg.get_submodule("stages.3.0").train()
    with pytest.raises(featx.ArgumentError, match=r"training mode .* call model\.eval\(\) first"):
        reparameterize(repvgg)
    with pytest.raises(featx.ArgumentError, match="training mode"):
        repvgg.get_submodule("stages.3.0").reparameterize()
    assert list(repvgg.state_dict()) == names


def test_a_second_time_changes_nothing(repvgg):
    reparameterize(repvgg)
    state = copy.deepcopy(repvgg.state_dict())
    reparameterize(repvgg)
    assert all(torch.equal(tensor, state[key]) for key, tensor in repvgg.state_dict().items())


def test_an_extractor_is_fused_together_with_its_model(repvgg):
    extractor = FeatureExtractWrapper(repvgg, [-1, 1])
    with torch.no_grad():
        before = [*extractor(images()), repvgg(images())]
        reparameterize(extractor)
        after = [*extractor(images()), repvgg(images())]
    assert max(relative_difference(a, b) for a, b in zip(after, before, strict=True)) <= 1e-5
    assert not any("conv_kxk" in key for key in repvgg.state_dict())
    assert extractor.state_dict().keys() <= repvgg.state_dict().keys()


def test_frozen_weights_stay_frozen_and_others_can_be_trained(repvgg):
    repvgg.get_submodule("stem").requires_grad_(False)
    reparameterize(repvgg)
    trained = {name: p.requires_grad for name, p in repvgg.named_parameters() if "reparam_conv" in name}
    assert trained == {name: not name.startswith("stem.") for name in trained}
    repvgg.train()(images()).sum().backward()
    assert all(p.grad is not None for p in repvgg.parameters() if p.requires_grad)


def test_the_contract_holds_afterwards(repvgg):
    reparameterize(repvgg)
    featx.verify(repvgg)


def test_a_fused_model_can_be_copied_and_its_weights_loaded(repvgg):
    reparameterize(repvgg)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(repvgg)))
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin), outputs(repvgg), strict=True))
    for parameter in twin.parameters():
        parameter.data.zero_()
    twin.load_state_dict(repvgg.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin), outputs(repvgg), strict=True))


@pytest.mark.usefixtures("tolerant_of_torch")
def test_a_fused_model_compiles_whole_and_exports(repvgg):
    torch._dynamo.reset()
    reparameterize(repvgg)
    with torch.no_grad():
        expected = repvgg(images())
        compiled = torch.compile(repvgg, fullgraph=True, backend="eager")
        assert torch.equal(compiled(images()), expected)
        assert torch.equal(torch.export.export(repvgg, (images(),)).module()(images()), expected)


def test_other_models_stay_as_they_are():
    model = featx.create_model("resnet18").eval()
    names = list(model.state_dict())
    reparameterize(model)
    assert list(model.state_dict()) == names
