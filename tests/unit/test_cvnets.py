"""Maps and channels by the names of CVNets."""

import pytest
import torch
from conftest import images, randomize

import featx
from featx.cvnets import endpoints, model_conf_dict


@pytest.fixture(scope="module")
def mobilevit():
    return randomize(featx.create_model("mobilevit_xxs"))


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({}, ["out_l1", "out_l2", "out_l3", "out_l4", "out_l5"]),
        ({"use_l5": False}, ["out_l1", "out_l2", "out_l3", "out_l4"]),
        ({"use_l5_exp": True}, ["out_l1", "out_l2", "out_l3", "out_l4", "out_l5", "out_l5_exp"]),
        ({"use_l5": False, "use_l5_exp": True}, ["out_l1", "out_l2", "out_l3", "out_l4"]),
    ],
)
def test_endpoints_are_named_and_ordered_as_in_cvnets(mobilevit, asked, names):
    extractor = featx.FeatureExtractWrapper(mobilevit)
    with torch.no_grad():
        maps = endpoints(extractor, images(), **asked)
        expected = extractor(images())
    assert list(maps) == names
    assert all(torch.equal(map_, reference) for map_, reference in zip(maps.values(), expected, strict=False))


def test_the_channels_of_mobilevit_are_those_of_the_original(mobilevit):
    assert model_conf_dict(mobilevit) == {
        "conv1": {"in": 3, "out": 16},
        "layer1": {"in": 16, "out": 16},
        "layer2": {"in": 16, "out": 24},
        "layer3": {"in": 24, "out": 48},
        "layer4": {"in": 48, "out": 64},
        "layer5": {"in": 64, "out": 80},
        "exp_before_cls": {"in": 80, "out": 320},
    }


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet18", ["out_l1", "out_l2", "out_l3", "out_l4", "out_l5"]),
        ("convnext_atto", ["out_l2", "out_l3", "out_l4", "out_l5"]),
    ],
)
@pytest.mark.parametrize("output_stride", [8, 32])
def test_layers_keep_their_names_when_dilated(name, names, output_stride):
    extractor = featx.create_model(name, features_only=True, output_stride=output_stride).eval()
    assert list(endpoints(extractor, images(1, 3, 64, 64))) == names


def test_a_model_without_a_pyramid_is_refused():
    with pytest.raises(featx.ContractError, match="not one per stride"):
        model_conf_dict(featx.create_model("vit_wee_patch16_reg1_gap_256"))


def test_an_extractor_of_some_levels_is_refused():
    with pytest.raises(featx.ContractError, match="need all levels"):
        endpoints(featx.create_model("resnet18", features_only=True, out_indices=[3, 1]), images())
