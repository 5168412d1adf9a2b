"""From images to what the weights expect, compared with timm and with the definition."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from timm.data import create_transform
from torch import nn

import featx
from featx import ArgumentError, DataConfig
from featx.preprocessing import IMAGENET_MEAN, IMAGENET_STD, from_hub

PHOTOGRAPHS = {name: Image.fromarray(getattr(data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")}


def model(config: DataConfig) -> nn.Module:
    model = nn.Identity()
    model.data_config = config
    return model


def reference(config: DataConfig):
    return create_transform(
        (3, *config.size),
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop,
    )


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request) -> Image.Image:
    return PHOTOGRAPHS[request.param]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("side", [224, 256])
def test_an_image_becomes_what_timm_makes_of_it(photograph, interpolation, crop, side):
    config = DataConfig((side, side), interpolation=interpolation, crop=crop)
    assert torch.equal(featx.transform(model(config))(photograph), reference(config)(photograph))


def test_other_means_and_deviations_are_used(photograph):
    config = DataConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.5, 1.0))
    assert torch.equal(featx.transform(model(config))(photograph), reference(config)(photograph))


@pytest.mark.parametrize("size", [(160, 320), (320, 160), (224, 256)])
def test_a_crop_that_is_no_square_is_filled_as_timm_fills_it(photograph, size):
    config = DataConfig(size)
    assert torch.equal(featx.transform(model(config))(photograph), reference(config)(photograph))


def test_a_size_replaces_the_configured_one(photograph):
    resized = featx.transform(model(DataConfig((256, 192), crop=0.95)), size=128)(photograph)
    assert torch.equal(resized, reference(DataConfig((128, 128), crop=0.95))(photograph))


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (7, 3)])
def test_an_image_smaller_than_the_crop_is_enlarged(size):
    enlarged = featx.transform(model(DataConfig(mean=(0, 0, 0), std=(1, 1, 1))))(Image.new("RGB", size, "white"))
    assert torch.equal(enlarged, torch.ones(3, 224, 224))


def test_the_preprocessing_of_an_extractor_is_that_of_its_model(photograph):
    extractor = featx.create_model("mobilenetv3_large_075", features_only=True)
    config = DataConfig((224, 224), IMAGENET_MEAN, IMAGENET_STD, "bilinear", 0.875)
    assert torch.equal(featx.transform(extractor)(photograph), reference(config)(photograph))


@pytest.mark.parametrize(("name", "shape"), [("astronaut", (96, 96)), ("coffee", (96, 144)), ("rocket", (96, 143))])
def test_a_whole_image_keeps_its_aspect(name, shape):
    whole = featx.transform_whole(model(DataConfig()), size=96)(PHOTOGRAPHS[name])
    assert whole.shape == (3, *shape)


def test_an_upright_image_keeps_its_aspect():
    upright = PHOTOGRAPHS["coffee"].transpose(Image.Transpose.ROTATE_90)
    assert featx.transform_whole(model(DataConfig()), size=96)(upright).shape == (3, 144, 96)


def test_a_whole_image_is_resized_and_normalised_but_not_cropped():
    photograph = PHOTOGRAPHS["coffee"]
    whole = featx.transform_whole(model(DataConfig(crop=0.5)), size=96)(photograph)
    resized = np.asarray(photograph.resize((144, 96), Image.Resampling.BICUBIC)) / 255
    expected = ((resized - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    assert np.abs(whole.numpy() - expected).max() < 1e-6  # single precision


def test_a_whole_image_has_the_configured_shorter_side_unless_told(photograph):
    assert min(featx.transform_whole(model(DataConfig((160, 192))))(photograph).shape[1:]) == 160


@pytest.mark.parametrize("make", [featx.transform, featx.transform_whole])
@pytest.mark.parametrize("size", [0, -224])
def test_a_size_below_one_is_refused(make, size):
    with pytest.raises(ArgumentError, match=rf"size={size}: expected a positive number of pixels"):
        make(model(DataConfig()), size=size)


@pytest.mark.parametrize("make", [featx.transform, featx.transform_whole])
def test_a_model_that_does_not_say_what_it_expects_is_refused(make):
    with pytest.raises(ArgumentError, match=r"Identity has no data_config: set model\.data_config = featx\.DataConfig"):
        make(nn.Identity())


@pytest.mark.parametrize("config", [None, {"size": (224, 224)}])
def test_a_data_config_of_another_kind_is_refused(config):
    other = nn.Identity()
    other.data_config = config
    with pytest.raises(ArgumentError, match="Identity has no data_config"):
        featx.transform(other)


def test_a_published_configuration_is_read():
    published = {
        "input_size": [3, 288, 320],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
        "interpolation": "bilinear",
        "crop_pct": 0.95,
        "classifier": "fc",
    }
    expected = DataConfig((288, 320), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bilinear", 0.95)
    assert from_hub(published, DataConfig()) == expected


def test_where_a_published_configuration_is_silent_the_default_holds():
    default = DataConfig((96, 96), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), "bilinear", 1.0)
    assert from_hub({"crop_pct": 0.9, "interpolation": None}, default) == DataConfig(
        (96, 96), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), "bilinear", 0.9
    )
