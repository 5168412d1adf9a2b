"""Weights of torchvision models, and the preprocessing that they state."""

from functools import cache
from urllib.error import URLError

import pytest
import torch
from conftest import assert_same, randomize
from PIL import Image
from skimage import data
from torch import Tensor, nn
from torchvision import models

import featx
from featx import DataConfig, FeatureExtractWrapper, WeightsNotFoundError
from featx.bridges import torchvision as bridge


@cache
def distinct() -> dict[DataConfig, models.WeightsEnum]:
    """One set of weights per distinct preprocessing."""
    return {
        bridge.data_config(weights): weights for name in bridge.names() for weights in models.get_model_weights(name)
    }


@pytest.mark.parametrize("name", bridge.names())
def test_preprocessing_is_what_the_weights_state(name):
    for weights in models.get_model_weights(name):
        config, stated = bridge.data_config(weights), weights.transforms()
        assert [*config.size] == stated.crop_size * 2
        assert [*config.resized()] == stated.resize_size * 2
        assert (config.interpolation, config.crop_mode) == (stated.interpolation.value, "center")
        assert [[*config.mean], [*config.std]] == [stated.mean, stated.std]


@pytest.mark.parametrize("tall", [False, True])
def test_pixels_are_those_of_the_weights_own_transform(tall):
    photograph = Image.fromarray(data.rocket())
    photograph = photograph.transpose(Image.Transpose.ROTATE_90) if tall else photograph
    model, different = nn.Identity(), []
    for config, weights in distinct().items():
        model.data_config = config
        if not torch.equal(featx.transform(model)(photograph), weights.transforms()(photograph)):
            different.append(weights)
    assert different == []


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", models.ResNet50_Weights.DEFAULT),
        ("resnet50.IMAGENET1K_V1", models.ResNet50_Weights.IMAGENET1K_V1),
        ("efficientnet_v2_l", models.EfficientNet_V2_L_Weights.DEFAULT),
    ],
)
def test_a_model_of_a_tag_has_its_preprocessing_without_its_weights(name, weights):
    with torch.device("meta"):
        assert bridge.build(name).data_config == bridge.data_config(weights)


def test_a_model_of_another_size_than_its_tags_weights_expects_its_own():
    with torch.device("meta"):
        config = bridge.build("vit_b_16.IMAGENET1K_SWAG_E2E_V1").data_config
    assert (config.size, config.interpolation) == ((224, 224), "bicubic")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch):
    """Published weights without a download: those of a model, under the given names."""

    def publish(state: dict[str, Tensor]) -> list[dict]:
        asked = []
        monkeypatch.setattr(
            models.WeightsEnum,
            "get_state_dict",
            lambda self, **kwargs: asked.append({"which": self, **kwargs}) or state,
        )
        return asked

    return publish


def test_published_weights_are_loaded(published, tmp_path):
    state = randomize(models.resnet18()).state_dict()
    asked = published(state)
    model = bridge.build("resnet18.IMAGENET1K_V1", pretrained=True, cache_dir=tmp_path)
    assert asked[0]["which"] is models.ResNet18_Weights.IMAGENET1K_V1
    assert asked[0]["model_dir"] == tmp_path
    assert_same(list(model.state_dict().values()), list(state.values()))
    assert FeatureExtractWrapper(model).data_config == bridge.data_config(models.ResNet18_Weights.DEFAULT)


def test_a_classifier_of_other_classes_stays_random(published):
    state = randomize(models.googlenet(init_weights=False)).state_dict()
    published(state)
    model = bridge.build("googlenet", pretrained=True, num_classes=7)
    assert model.transform_input
    loaded = model.state_dict()
    changed = {name for name in state if state[name].shape != loaded[name].shape}
    assert {name.split(".")[0] for name in changed} == {"fc", "aux1", "aux2"}
    assert_same(
        [loaded[name] for name in loaded if name not in changed], [state[n] for n in loaded if n not in changed]
    )


def test_published_densenets_are_loaded_under_their_old_names(published):
    state = randomize(models.densenet121()).state_dict()
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): t for name, t in state.items()}
    assert old.keys() != state.keys()
    published(old)
    model = bridge.build("densenet121", pretrained=True)
    assert_same(list(model.state_dict().values()), list(state.values()))


def test_weights_of_another_size_of_images_choose_it(published):
    with torch.device("meta"):
        published(models.vit_b_16(image_size=384).state_dict())
        model = bridge.build("vit_b_16.IMAGENET1K_SWAG_E2E_V1", pretrained=True)
    assert model.image_size == 384
    assert model.data_config.size == (384, 384)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def fail(self, **_):
        raise URLError("no route")

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(WeightsNotFoundError, match=r"resnet18-.*no route"):
        bridge.build("resnet18", pretrained=True)
