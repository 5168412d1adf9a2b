"""Attributes of an extractor that describe the model in it."""

import pytest
import torch
from conftest import images
from torch import nn

import featx
from featx import ContractError, FeatureExtractWrapper
from featx.models.resnet import ResNet
from featx.wrappers.extractor import pyramid_of, source_of


class Sized(featx.Pyramid):
    """Accepts images of one size."""

    fixed_size, corrections = (8, 16), ("the channels are 3, not 4",)

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = featx.Levels([featx.FeatureInfo(3, 1, "map")])

    def forward_maps(self, x, levels):
        return [x for _ in levels]

    def unused(self, levels):
        return ()


def test_the_source_is_the_wrapped_model_without_unneeded_modules():
    model = featx.create_model("resnet18")
    source = FeatureExtractWrapper(model).source
    assert type(source) is ResNet
    assert source.get_parameter("conv1.weight") is model.get_parameter("conv1.weight")
    assert set(model.state_dict()) - set(source.state_dict()) == {"fc.weight", "fc.bias"}


def test_the_source_of_a_native_model_has_its_config():
    source = featx.create_model("resnet18", features_only=True, out_indices=[1], in_chans=1).source
    assert isinstance(source, ResNet)
    assert source.config.in_chans == 1
    assert source.architecture == "resnet18"


def test_the_source_of_another_package_knows_the_sizes_of_its_maps():
    extractor = featx.create_model("torchvision/resnet18", features_only=True)
    assert isinstance(extractor.source, featx.Backbone)
    assert extractor.source.size_rule(33, 32) == extractor.eval()(images(2, 3, 33, 33))[-1].shape[-1]


def test_an_extractor_has_the_attributes_of_its_pyramid():
    extractor = FeatureExtractWrapper(Sized())
    assert extractor.fixed_size == (8, 16)
    assert extractor.corrections == Sized.corrections
    native = featx.create_model("resnet18", features_only=True)
    assert (native.fixed_size, native.corrections) == (None, ())


def test_functions_on_models_accept_extractors():
    model = featx.create_model("resnet18")
    extractor = FeatureExtractWrapper(model)
    assert source_of(extractor) is extractor.source
    assert source_of(model) is model
    assert pyramid_of(extractor).feature_info == pyramid_of(model).feature_info
    with pytest.raises(ContractError, match="Linear has no feature_info"):
        pyramid_of(nn.Linear(1, 1))


def test_a_child_called_source_keeps_its_name_and_its_maps():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source = nn.Conv2d(3, 4, 3, 2, 1)
            self.feature_info = [{"chs": 4, "reduction": 2, "name": "source"}]

        def forward(self, x):
            return self.source(x)

    model = Named()
    extractor, x = FeatureExtractWrapper(model), images()
    assert extractor.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(extractor(x)[0], model(x))
