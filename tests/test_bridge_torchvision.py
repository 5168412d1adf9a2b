"""torchvision's classifiers under the contract."""

import pytest
import torch
from conftest import images, randomise
from torch import nn
from torchvision import models

import featx

SMALL = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")


def hooked(model: nn.Module, names: list[str], x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of modules of the intact model."""
    taken: dict[str, torch.Tensor] = {}

    def take(name: str):
        return lambda _module, _args, output: taken.update({name: output.clone()})

    handles = [model.get_submodule(name).register_forward_hook(take(name)) for name in names]
    model(x)
    for handle in handles:
        handle.remove()
    return [taken[name] for name in names]


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (97, 161)])
@pytest.mark.parametrize("name", SMALL)
def test_maps_are_those_of_the_intact_model_in_the_order_asked_for(name, size):
    model = randomise(models.get_model(name)).eval()
    extractor = featx.FeatureExtractWrapper(model, [-1, 1])
    x = images(2, 3, *size)
    expected = hooked(model, extractor.feature_info.names(), x)
    for level, map_, right in zip(extractor.feature_info, extractor(x), expected, strict=True):
        assert torch.equal(map_, right)
        assert map_.shape[1] == level.chs
        assert map_.is_contiguous()


@pytest.mark.parametrize("name", SMALL)
def test_names_are_the_plain_models_and_checkpoints_load_both_ways(name):
    model = randomise(models.get_model(name))
    extractor = featx.create_model(f"torchvision/{name}", features_only=True, out_indices=[1])
    report = featx.load_weights(extractor, model.state_dict())
    assert set(report.loaded) == extractor.state_dict().keys() < model.state_dict().keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in extractor.state_dict().items())


def test_a_name_that_torchvision_lacks_is_refused_with_the_closest():
    with pytest.raises(featx.UnknownModelError, match="resnet18"):
        featx.create_model("torchvision/resnet81")


def test_a_bare_name_that_another_package_has_is_answered_with_its_spelling():
    with pytest.raises(featx.UnknownModelError, match="torchvision/shufflenet_v2_x0_5"):
        featx.create_model("shufflenet_v2_x0_5")


def test_strides_are_traded_for_dilation_where_torchvision_can():
    extractor = featx.create_model("torchvision/resnet50", features_only=True, output_stride=16)
    assert extractor.feature_info.reduction()[-1] == 16
    with pytest.raises(featx.ArgumentError, match="output_stride"):
        featx.create_model("torchvision/mobilenet_v3_small", output_stride=16)
