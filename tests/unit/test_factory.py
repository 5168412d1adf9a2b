"""create_model: what it accepts, and its errors."""

from dataclasses import fields
from inspect import signature
from typing import get_overloads

import pytest
import torch
from conftest import images
from torch import nn

import featx
from featx import ArgumentError, ContractError, UnknownModelError, factory
from featx.weights.checkpoint import LoadOptions


def test_without_features_only_it_is_a_classifier():
    model = featx.create_model("mobilenetv3_small_050")
    assert model(images()).shape == (2, 1000)


def test_with_features_only_it_is_an_extractor_of_all_levels():
    backbone = featx.create_model("mobilenetv3_small_050", features_only=True)
    assert [tuple(m.shape[1:]) for m in backbone(images())] == [
        (16, 32, 48),
        (8, 16, 24),
        (16, 8, 12),
        (24, 4, 6),
        (288, 2, 3),
    ]
    assert backbone.feature_info.channels() == [16, 8, 16, 24, 288]


def test_levels_are_chosen_by_index_or_name():
    by_index = featx.create_model("resnet18", features_only=True, out_indices=[3, 1])
    by_name = featx.create_model("resnet18", features_only=True, out_names=["layer3", "layer1"])
    assert by_index.feature_info == by_name.feature_info
    assert by_index.feature_info.names() == ["layer3", "layer1"]


def test_an_array_of_indices_needs_features_only_too():
    with pytest.raises(ArgumentError, match="pass features_only=True"):
        featx.create_model("resnet18", out_indices=torch.tensor([1, 2]))


def test_levels_are_found_by_stride():
    backbone = featx.create_model("resnet18", features_only=True)
    assert backbone.feature_at(8) == featx.FeatureInfo(128, 8, "layer2")


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(featx.create_model("resnet18").state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_new_models_are_in_training_mode_as_torch_has_it():
    assert featx.create_model("mobilenetv3_small_050", features_only=True).training


@pytest.mark.parametrize(
    ("kwargs", "problem"),
    [
        ({"out_indices": [1]}, "pass features_only=True"),
        ({"out_names": ["layer1"]}, "pass features_only=True"),
        ({"output": "dict"}, "pass features_only=True"),
        ({"features_only": True, "output": "tuple"}, "choose one of"),
        ({"pretrained": True, "checkpoint_path": "x.pt"}, "pass one of them"),
        ({"feature_only": True}, "'feature_only' .did you mean 'features_only'"),
        ({"in_channels": 1}, "'in_channels' .did you mean 'in_chans'"),
        ({"out_indexes": [1]}, "'out_indexes' .did you mean 'out_indices'"),
        ({"nonsense": 1, "num_clases": 2}, "no argument 'nonsense', 'num_clases' .did you mean 'num_classes'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0: expected 0 or more, and less than 1"),
        ({"num_classes": -1}, "num_classes=-1: expected an int of at least 0"),
        ({"global_pool": "min"}, "global_pool='min': choose one of"),
        ({"output_stride": 4}, "output_stride=4: choose one of"),
        ({"output_stride": "8"}, "output_stride='8': expected an int of at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_the_right_one(kwargs, problem):
    with pytest.raises(ArgumentError, match=problem):
        featx.create_model("resnet18", **kwargs)


@pytest.mark.parametrize("name", ["renset18", "resnet-18", "ResNet18"])
def test_a_misspelt_name_is_answered_with_the_closest(name):
    with pytest.raises(UnknownModelError, match=f"no model is named '{name}'; did you mean.*resnet18"):
        featx.create_model(name)


def test_a_name_like_no_other_is_answered_with_where_names_are():
    with pytest.raises(UnknownModelError, match=r"see featx.list_models\(\)"):
        featx.create_model("qqqq")


def test_a_tag_names_published_weights():
    assert featx.create_model("resnet18.a1_in1k")
    with pytest.raises(UnknownModelError, match=r"resnet18 has no weights tagged 'a9'; it has \['a1_in1k'"):
        featx.create_model("resnet18.a9")


def test_models_are_listed_sorted_by_pattern():
    assert featx.list_models("hrnet_w18_s*_v2") == ["hrnet_w18_small_v2"]
    assert featx.list_models("wide_resnet*_2") == ["wide_resnet101_2", "wide_resnet50_2"]
    assert featx.list_models("nothing*") == []
    assert featx.list_models() == sorted(featx.list_models())


@pytest.mark.usefixtures("own_registry")
def test_a_name_is_registered_once():
    def resnet18():
        return nn.Identity()

    with pytest.raises(ArgumentError, match=r"already registered: \['resnet18'\]"):
        featx.register_model(resnet18)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((3, 64, 64), r"got shape \(3, 64, 64\): add the batch axis with x.unsqueeze\(0\)"),
        ((64, 64), "expected images .N, C, H, W."),
        ((2, 64, 64, 3), r"expected 3 channels on axis 1.*use x.permute\(0, 3, 1, 2\)"),
        ((2, 4, 64, 64), "expected 3 channels on axis 1.*in_chans=4"),
        ((2, 3, 31, 64), "images of 31x64 pixels are smaller than one cell of the deepest map .32 pixels."),
        ((2, 3, 0, 64), "images of 0x64 pixels"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, problem):
    for name in ("resnet18", "hrnet_w18_small"):
        with pytest.raises(featx.InputError, match=problem):
            featx.create_model(name, features_only=True)(torch.zeros(shape))


def test_what_is_not_a_tensor_is_refused():
    with pytest.raises(featx.InputError, match=r"got list: see featx.transform"):
        featx.create_model("resnet18", features_only=True)([1])


def test_a_classifier_refuses_images_that_do_not_fit_as_well():
    with pytest.raises(featx.InputError, match="expected 3 channels"):
        featx.create_model("resnet18")(torch.zeros(2, 1, 64, 64))


def test_a_classifier_that_rounds_down_refuses_images_smaller_than_a_cell():
    with pytest.raises(featx.InputError, match="images of 16x16 pixels are smaller than one cell"):
        featx.create_model("convnext_atto")(torch.zeros(1, 3, 16, 16))


def test_shallow_levels_take_images_that_are_too_small_for_deep_ones():
    maps = featx.create_model("resnet18", features_only=True, out_indices=[0, 1]).eval()(torch.zeros(1, 3, 5, 7))
    assert [tuple(m.shape[2:]) for m in maps] == [(3, 4), (2, 2)]


def test_an_extractor_is_not_wrapped_again():
    with pytest.raises(ContractError, match="feature extractor already"):
        featx.FeatureExtractWrapper(featx.create_model("resnet18", features_only=True))


def test_a_model_without_feature_info_is_refused_with_what_to_add():
    with pytest.raises(ContractError, match="Linear has no feature_info: list the levels"):
        featx.FeatureExtractWrapper(nn.Linear(1, 1))


@pytest.mark.parametrize("how", ["override", "hook"])
def test_a_root_that_saves_its_state_in_its_own_way_is_refused(how):
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)
            self.feature_info = [{"chs": 4, "reduction": 1, "name": "a"}]

        def forward(self, x):
            return self.a(x)

    class Overriding(Root):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)

    model = Overriding() if how == "override" else Root()
    if how == "hook":
        model.register_load_state_dict_pre_hook(lambda *_: None)
    with pytest.raises(ContractError, match="changes how its own state is saved or loaded"):
        featx.FeatureExtractWrapper(model)


@pytest.mark.parametrize("pretrained", [False, True])
def test_config_json_of_a_folder_is_read_once(monkeypatch, tmp_path, pretrained):
    featx.save(featx.create_model("mobilenetv3_small_050", num_classes=4), tmp_path)
    read, asked = factory.config_of, []
    monkeypatch.setattr(factory, "config_of", lambda *args: asked.append(args) or read(*args))
    assert featx.create_model(f"local-dir:{tmp_path}", pretrained).num_classes == 4
    assert len(asked) == 1


def test_each_signature_of_create_model_has_the_options_of_loading_with_their_defaults():
    options = {field.name: field.default for field in fields(LoadOptions)}
    for typed in get_overloads(featx.create_model):
        parameters = signature(typed).parameters
        assert options.items() <= {name: one.default for name, one in parameters.items()}.items()
        assert set(parameters) <= {*factory.ARGUMENTS, "arch"}
    assert set(options) < set(factory.ARGUMENTS)


def test_help_shows_every_argument_of_create_model_with_its_default():
    shown = signature(featx.create_model).parameters
    assert tuple(shown)[:-1] == factory.ARGUMENTS
    assert shown["features_only"].default is False
    for field in fields(LoadOptions):
        assert shown[field.name].default == field.default
