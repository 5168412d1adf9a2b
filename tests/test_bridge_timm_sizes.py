"""Sizes of images that models of timm take, and how they are rounded."""

import pytest
import torch
from conftest import images
from timm_extractors import extractor, on_meta

import featx
from featx import FeatureExtractWrapper
from featx.bridges import timm as bridge


@pytest.mark.parametrize(
    ("name", "level", "rule"),
    [
        ("test_resnet", 1, "rounded up"),
        ("test_convnext", 1, "rounded down"),
        ("ese_vovnet19b_slim_dw", 4, "(side +3) // 32"),
        # 299 -> 149 -> 147: three convolutions of 3, the first of stride 2, two of them without padding
        pytest.param("inception_v3", 0, "(side -5) // 2", marks=pytest.mark.bridges),
        ("mobilevitv2_050", 3, "rounded up to a multiple of 2"),
    ],
)
def test_the_rounding_of_each_reduction_is_found_and_holds_at_every_size(name, level, rule):
    pyramid = bridge.pyramid(on_meta(name))
    assert str(pyramid.size_rule.roundings()[pyramid.feature_info[level].reduction]) == rule
    assert len(featx.verify(pyramid).sizes) == 5


def test_a_convolution_without_padding_keeps_its_stride_and_gives_a_cell_less():
    pyramid = bridge.pyramid(on_meta("pit_ti_224"))
    assert pyramid.feature_info.reduction() == [8, 16, 32]
    assert pyramid.size_rule(224, 8) == 27
    assert extractor(on_meta("pit_ti_224"), [0])(torch.empty(1, 3, 224, 224, device="meta"))[0].shape[2:] == (27, 27)


# those with windows, patches or tables of positions get img_size; a ResNet takes any size as it is
@pytest.mark.parametrize(
    "name",
    ["test_resnet", "swin_tiny_patch4_window7_224", "test_vit", "levit_128s", "pit_ti_224"],
)
def test_one_argument_builds_for_another_size(name):
    model = on_meta(name, image_size=(192, 256))
    pyramid = bridge.pyramid(model)
    assert pyramid.data_config.size == (192, 256)
    assert pyramid.feature_info.reduction() == bridge.pyramid(on_meta(name)).feature_info.reduction()
    for level, map_ in zip(
        pyramid.feature_info, FeatureExtractWrapper(pyramid)(torch.empty(1, 3, 192, 256, device="meta")), strict=True
    ):
        unpadded = name.startswith("pit") and level.reduction == 8
        assert map_.shape[1:] == (level.chs, 192 // level.reduction - unpadded, 256 // level.reduction - unpadded)


def test_one_side_is_that_of_a_square():
    assert bridge.pyramid(on_meta("test_vit", image_size=96)).data_config.size == (96, 96)


@pytest.mark.parametrize("wrong", [0, (1, 2, 3), "big", (64, 0)])
def test_a_size_that_is_none_is_refused(wrong):
    with pytest.raises(featx.ArgumentError, match="image_size="):
        bridge.build("test_vit", image_size=wrong)


def test_a_size_is_said_in_one_way():
    with pytest.raises(featx.ArgumentError, match=r"image_size and \['img_size'\] both say"):
        bridge.build("test_vit", image_size=96, img_size=96)


@pytest.mark.parametrize("name", ["nest_tiny", "halonet26t", "crossvit_tiny_240"])
def test_a_size_an_architecture_cannot_be_built_for_is_refused_with_its_own_reason(name):
    with pytest.raises(featx.ArgumentError, match="cannot be built for images of 192x256 pixels:\n  as it is: "):
        bridge.build(name, image_size=(192, 256))


def test_images_of_a_size_the_model_does_not_take_are_refused():
    model = bridge.build("deit_tiny_patch16_224", depth=2)
    with pytest.raises(featx.InputError, match=r"takes no images of 192x256 pixels .* image_size=\(192, 256\)"):
        extractor(model)(images(1, 3, 192, 256))


def test_images_that_the_architecture_would_resize_are_refused():
    model = bridge.build("crossvit_tiny_240")
    with pytest.raises(featx.InputError, match="takes no images of 192x256 pixels"):
        extractor(model)(images(1, 3, 192, 256))
