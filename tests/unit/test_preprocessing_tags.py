"""The preprocessing of every published tag: timm's configuration, and timm's pixels of oblong photographs."""

from functools import cache

import pytest
import torch
from PIL import Image
from skimage import data
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torch import nn

import featx
from featx import DataConfig
from featx.factory import find
from featx.registry import lookup

TAGS = [f"{name}.{tag}" for name in featx.list_models() for tag in lookup(name).weights]
WIDE = Image.fromarray(data.rocket())
PHOTOGRAPHS = [WIDE, Image.fromarray(data.coffee()).transpose(Image.Transpose.ROTATE_90)]


def timms(tag: str) -> dict:
    return resolve_data_config(pretrained_cfg=get_pretrained_cfg(tag).to_dict())


def as_ours(theirs: dict) -> DataConfig:
    return DataConfig(
        tuple(theirs["input_size"][1:]),
        tuple(theirs["mean"]),
        tuple(theirs["std"]),
        theirs["interpolation"],
        theirs["crop_pct"],
        theirs["crop_mode"],
    )


@cache
def distinct() -> dict[DataConfig, str]:
    """A tag of each configuration that there is."""
    return {as_ours(timms(tag)): tag for tag in TAGS}


@pytest.mark.parametrize("name", featx.list_models())
def test_every_tag_has_the_preprocessing_that_timm_states_of_it(name):
    tags = [f"{name}.{tag}" for tag in lookup(name).weights]
    differing = [tag for tag in tags if find(tag)[0].data != as_ours(timms(tag))]
    assert differing == []
    assert find(name)[0].data == as_ours(timms(name))


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=["wide", "tall"])
def test_pixels_are_timms_for_a_tag_of_each_preprocessing(photograph):
    assert {config.crop_mode for config in distinct()} == {"center", "squash"}
    different = []
    for tag in distinct().values():
        model = nn.Identity()
        model.data_config = find(tag)[0].data
        reference = create_transform(**timms(tag), is_training=False)
        if not torch.equal(featx.transform(model)(photograph), reference(photograph)):
            different.append(tag)
    assert different == []


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("resnet50.a3_in1k", DataConfig((160, 160), crop=0.95)),
        ("mobilenetv3_large_100.ra4_e3600_r224_in1k", DataConfig(mean=(0.5,) * 3, std=(0.5,) * 3, crop=0.95)),
        ("convnextv2_nano.fcmae_ft_in22k_in1k_384", DataConfig((384, 384), crop=1.0, crop_mode="squash")),
    ],
)
@pytest.mark.parametrize("features_only", [False, True])
def test_a_model_of_a_tag_has_its_preprocessing_without_its_weights(tag, expected, features_only):
    with torch.device("meta"):
        assert featx.create_model(tag, features_only=features_only).data_config == expected


def test_weights_from_elsewhere_leave_a_model_the_preprocessing_of_its_tag():
    state = featx.create_model("mobilenetv3_large_100").state_dict()
    model = featx.create_model("mobilenetv3_large_100.miil_in21k_ft_in1k", checkpoint_path=state)
    assert model.data_config == DataConfig(mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
