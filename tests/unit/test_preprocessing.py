"""Preprocessing of images, compared with timm and with the definition."""

import pickle
from dataclasses import replace

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
        crop_mode=config.crop_mode,
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


@pytest.mark.parametrize("mode", ["squash", "border"])
@pytest.mark.parametrize("crop", [0.8, 0.95, 1.0, 1.3])
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (160, 95)])
@pytest.mark.parametrize("tall", [False, True])
def test_crop_modes_are_timms(mode, crop, size, tall):
    photograph = PHOTOGRAPHS["rocket"]
    if tall:
        photograph = photograph.transpose(Image.Transpose.ROTATE_90)
    config = DataConfig(size, crop=crop, crop_mode=mode)
    assert torch.equal(featx.transform(model(config))(photograph), reference(config)(photograph))


def test_a_size_keeps_the_crop_mode():
    config = DataConfig((256, 192), crop=0.95, crop_mode="squash")
    resized = featx.transform(model(config), size=128)(PHOTOGRAPHS["rocket"])
    assert torch.equal(resized, reference(replace(config, size=(128, 128)))(PHOTOGRAPHS["rocket"]))


def test_what_only_the_models_package_does_is_refused_until_a_mode_is_chosen():
    other = model(DataConfig((64, 64), crop=1.0, crop_mode="other"))
    with pytest.raises(ArgumentError, match=r"in a way that no crop mode has: .*crop_mode='squash'"):
        featx.transform(other)
    assert featx.transform_whole(other)(PHOTOGRAPHS["coffee"]).shape == (3, 64, 96)
    other.data_config = replace(other.data_config, crop_mode="squash")
    assert featx.transform(other)(PHOTOGRAPHS["coffee"]).shape == (3, 64, 64)


@pytest.mark.parametrize("make", [featx.transform, featx.transform_whole])
def test_channels_come_in_the_order_that_the_model_takes(make):
    config = DataConfig((64, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    turned = make(model(replace(config, channel_order="bgr")))(PHOTOGRAPHS["coffee"])
    assert torch.equal(turned, make(model(config))(PHOTOGRAPHS["coffee"]).flip(0))


def test_a_crop_between_two_pixels_starts_at_the_even_one_or_the_next_one_down():
    """Of 67 columns, 64 from the center leave one and a half at the left."""
    columns = np.arange(67, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    starts = {}
    for rounding in ("nearest", "down"):
        config = DataConfig((64, 64), (0, 0, 0), (1, 1, 1), crop=1.0, crop_rounding=rounding)
        starts[rounding] = round(featx.transform(model(config))(Image.fromarray(columns))[0, 0, 0].item() * 255)
    assert starts == {"nearest": 2, "down": 1}


@pytest.mark.parametrize("make", [featx.transform, featx.transform_whole])
def test_a_model_of_one_channel_is_given_the_gray_image(make):
    gray = model(DataConfig((64, 64), (0.4,), (0.2,)))
    made = make(gray)(PHOTOGRAPHS["coffee"])
    assert made.shape[0] == 1
    assert torch.equal(made, make(gray)(PHOTOGRAPHS["coffee"].convert("L")))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes_become_rgb(mode):
    other = PHOTOGRAPHS["coffee"].convert(mode)
    config = DataConfig((64, 64))
    assert torch.equal(featx.transform(model(config))(other), reference(config)(other.convert("RGB")))


@pytest.mark.parametrize("make", [featx.transform, featx.transform_whole])
@pytest.mark.parametrize("in_chans", [1, 5])
def test_a_model_of_other_channels_than_its_preprocessing_is_refused(make, in_chans):
    with torch.device("meta"):
        other = featx.create_model("resnet18", in_chans=in_chans)
    with pytest.raises(ArgumentError, match=rf"takes {in_chans} channels and its data_config has 3 means"):
        make(other)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"crop_mode": "middle"}, r"crop_mode='middle': choose one of \('center', 'squash', 'border', 'other'\)"),
        ({"channel_order": "gbr"}, r"channel_order='gbr': choose one of"),
        ({"crop_rounding": "up"}, r"crop_rounding='up': choose one of"),
        ({"crop": 0}, r"crop=0: expected a positive share"),
        ({"crop": -0.5}, r"crop=-0\.5: expected"),
        ({"crop": float("nan")}, r"crop=nan: expected"),
        ({"crop": 300}, r"crop=300: expected"),
        ({"crop": "0.9"}, r"crop='0\.9': expected"),
        ({"size": (0, 224)}, r"size=\(0, 224\): expected \(height, width\)"),
        ({"size": (3, 224, 224)}, r"size=\(3, 224, 224\): expected"),
        ({"std": (0.1, 0.0, 0.1)}, r"no std of 0"),
        ({"mean": (0.5,)}, r"expected one of each per channel"),
        ({"crop": 0, "crop_mode": "x"}, r"crop_mode='x': .*; crop=0: "),
    ],
)
def test_a_configuration_without_meaning_is_refused(fields, match):
    with pytest.raises(ArgumentError, match=match):
        DataConfig(**fields)


@pytest.mark.parametrize("interpolation", ["random", "cubic"])
def test_an_interpolation_that_pillow_lacks_is_refused(interpolation):
    with pytest.raises(ArgumentError, match=rf"interpolation='{interpolation}': choose one of nearest, "):
        featx.transform(model(DataConfig(interpolation=interpolation)))


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


def test_a_whole_image_is_resized_and_normalized_but_not_cropped():
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
        "crop_mode": "squash",
        "test_input_size": [3, 352, 352],
        "test_crop_pct": 1.0,
        "fixed_input_size": True,
        "classifier": "fc",
    }
    expected = DataConfig((288, 320), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "bilinear", 0.95, "squash")
    assert from_hub(published, DataConfig()) == expected


def test_where_a_published_configuration_is_silent_the_default_holds():
    default = DataConfig((96, 96), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), "bilinear", 1.0)
    silent = {"interpolation": "", "crop_mode": None, "mean": None, "std": [], "input_size": None}
    assert from_hub({"crop_pct": 0.9, **silent}, default) == DataConfig(
        (96, 96), (0.1, 0.1, 0.1), (0.2, 0.2, 0.2), "bilinear", 0.9
    )


def test_transforms_take_paths_arrays_and_any_mode_and_show_their_settings(tmp_path):
    image = Image.fromarray(data.coffee())
    image.save(tmp_path / "coffee.png")
    prepare = featx.transform(model(DataConfig()))
    expected = prepare(image)
    for picture in (tmp_path / "coffee.png", np.asarray(image), image.convert("RGBA")):
        assert torch.equal(prepare(picture), expected)
    assert repr(prepare).startswith("Transform(config=DataConfig(size=(224, 224), mean=(0.485, 0.456, 0.406)")
    assert pickle.loads(pickle.dumps(prepare))(image).equal(expected)
