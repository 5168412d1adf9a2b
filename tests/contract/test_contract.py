"""The promises to every registered variant, proven on shapes alone. A new family is covered by being registered.

What runs, runs without the blocks that are in every attribute like the one before them, but for the smallest variants,
which are whole. Names are those of whole models. Levels, names and shapes are proven for every variant; heads and
dilation once for those that differ in widths and depth alone.
"""

import copy
import dataclasses

import pytest
import torch
from conftest import SMALL, VARIANTS
from support.truncation import make_shallow
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.meta_init import init_empty_weights
from featx.models.vit import ViT
from featx.models.vit_rotary import RotaryViT
from featx.registry import lookup

pytestmark = pytest.mark.usefixtures("shapes_alone")


@pytest.fixture(params=VARIANTS, scope="module")
def on_meta(request: pytest.FixtureRequest) -> nn.Module:
    with init_empty_weights():
        return featx.create_model(request.param)


def shallow(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    if model.architecture not in SMALL:
        make_shallow(model)
    return model


def test_feature_info_is_true_at_every_size(on_meta):
    model = shallow(on_meta)
    proven = featx.verify(model)
    assert len(proven.sizes) == 5
    assert proven.levels == model.feature_info
    # what was left out with the blocks is like what was there
    assert {(level.chs, level.reduction) for level in proven.levels} == {
        (level.chs, level.reduction) for level in on_meta.feature_info
    }


def test_reductions_and_depths_grow(on_meta):
    assert on_meta.feature_info.reduction() == sorted(on_meta.feature_info.reduction())


def test_every_name_is_a_module(on_meta):
    for name in on_meta.feature_info.names():
        assert isinstance(on_meta.get_submodule(name), nn.Module)


def test_names_and_shapes_of_every_level_are_those_of_the_full_model(on_meta):
    state = {name: tensor.shape for name, tensor in on_meta.state_dict().items()}
    parameters = {name for name, _ in on_meta.named_parameters()}
    for level in range(len(on_meta.feature_info)):
        extractor = FeatureExtractWrapper(on_meta, [level])
        held = {name: tensor.shape for name, tensor in extractor.state_dict().items()}
        assert held
        assert held.items() <= state.items()
        assert {name for name, _ in extractor.named_parameters()} <= parameters
        assert {name for name, _ in nn.Sequential(extractor).named_parameters()} <= {f"0.{name}" for name in parameters}


def test_wrapping_leaves_the_model_whole(on_meta):
    before = [name for name, _ in on_meta.named_modules()]
    FeatureExtractWrapper(on_meta, [0])
    assert [name for name, _ in on_meta.named_modules()] == before


def ends_with_its_last_level(model: nn.Module) -> bool:
    """Whether it is a ViT without classes whose last norm, if any, is one of the maps."""
    if not isinstance(model, ViT | RotaryViT) or model.num_classes:
        return False
    return model.norm_maps or not [*model.norm.parameters(), *model.fc_norm.parameters()]


def test_shallower_extractors_hold_less(on_meta):
    held = [
        sum(p.numel() for p in FeatureExtractWrapper(on_meta, [level]).parameters())
        for level in range(len(on_meta.feature_info))
    ]
    assert held == sorted(held)
    whole = sum(p.numel() for p in on_meta.parameters())
    assert held[0] < held[-1]
    assert held[-1] == whole if ends_with_its_last_level(on_meta) else held[-1] < whole


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=pytest.mark.sweep)])
def test_output_stride_bounds_the_reductions_or_is_refused(name, output_stride, code_paths):
    if "output_stride" not in [field.name for field in dataclasses.fields(lookup(name).config)]:
        with pytest.raises(featx.ArgumentError, match="cannot trade strides for dilation"):
            featx.create_model(name, output_stride=output_stride)
        return
    with init_empty_weights():
        plain, dilated = featx.create_model(name), featx.create_model(name, output_stride=output_stride)
    expected = [min(reduction, output_stride) for reduction in plain.feature_info.reduction()]
    assert dilated.feature_info.reduction() == expected
    assert dilated.feature_info.names() == plain.feature_info.names()
    assert list(dilated.state_dict()) == list(plain.state_dict())
    if not code_paths.have(f"stride {output_stride}", dilated):
        featx.verify(shallow(dilated), sizes=[(224, 224), (97, 161)])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_classifier_can_be_replaced(name, code_paths):
    with init_empty_weights():
        model = featx.create_model(name)
        if code_paths.have("another classifier", model):
            return
        model = shallow(model)
        model.reset_classifier(7)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)
        model.reset_classifier(0)
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, model.head_hidden_size)
        model.reset_classifier(3)
        assert {key for key, value in model.state_dict().items() if value.shape[:1] == (3,)} == {
            f"{type(model).last_linear}.weight",
            f"{type(model).last_linear}.bias",
        }


@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_classes_and_channels_is_a_choice(name, code_paths):
    with init_empty_weights():
        model = featx.create_model(name, num_classes=7, in_chans=5)
        if code_paths.have("classes and channels", model):
            return
        model = shallow(model)
        assert model(torch.empty(2, 5, 64, 64)).shape == (2, 7)
        pooled = shallow(featx.create_model(name, num_classes=0))(torch.empty(2, 3, 64, 64))
    assert pooled.ndim == 2
    assert pooled.shape[1] > 7
