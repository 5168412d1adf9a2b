"""Errors of necks and their messages."""

import pytest
import timm
import torch
from conftest import images
from torch import nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

import featx
from featx import ArgumentError, ContractError, InputError
from featx.features import FeatureInfo, Levels
from featx.necks import (
    ASPP,
    FPN,
    P6P7,
    PAFPN,
    BiFPN,
    ChannelMapper,
    ExtraLevels,
    MaxPoolLevel,
    Pipeline,
    SimpleFeaturePyramid,
)

PYRAMIDS = [FPN, PAFPN, BiFPN, P6P7, MaxPoolLevel, lambda info: ExtraLevels(info, [8])]
LEVELS = Levels([FeatureInfo(8, 8, "c3"), FeatureInfo(16, 16, "c4")])
ONE = Levels([FeatureInfo(16, 16, "c4")])


def levels_of(name: str, out_indices: int | list[int] | None = None) -> Levels:
    with torch.device("meta"):
        return featx.create_model(name, features_only=True, out_indices=out_indices).feature_info


@pytest.mark.parametrize("neck", PYRAMIDS)
@pytest.mark.parametrize(
    ("out_indices", "reductions"),
    [([0, 2, 4], r"\[2, 8, 32\]"), ([4, 3], r"\[32, 16\]"), ([1, 3, 4], r"\[4, 16, 32\]")],
)
def test_reductions_must_double(neck, out_indices, reductions):
    with pytest.raises(ContractError, match=rf"doubles from one to the next, got {reductions}:\n"):
        neck(levels_of("resnet18", out_indices))


def test_the_error_shows_levels_to_choose():
    with pytest.raises(ContractError, match=r"layer4 .* 1/32\nChoose .* out_indices=\[0, 1, 2, 3, 4\]$"):
        FPN(levels_of("resnet18", [1, 4]))
    dilated = featx.create_model("resnet18", output_stride=16)
    with pytest.raises(ContractError, match=r"out_indices=\[0, 1, 2, 4\]"):
        FPN(featx.FeatureExtractWrapper(dilated).feature_info)
    FPN(featx.FeatureExtractWrapper(dilated, [0, 1, 2, 4]).feature_info)


def test_the_error_leads_a_model_of_one_stride_to_its_pyramid():
    with pytest.raises(
        ContractError, match=r"got \[16, 16, 16\](.|\n)*out_indices=\[-1\], and make SimpleFeaturePyramid"
    ):
        FPN(levels_of("vit_tiny_patch16_224", 3))


def test_the_error_says_when_there_is_no_choice():
    with pytest.raises(ContractError, match="No two of all its levels do: they have reductions of \\[4, 16\\] pixels"):
        FPN([FeatureInfo(8, 4, "a"), FeatureInfo(8, 16, "b")])


def test_levels_must_be_levels():
    with pytest.raises(ContractError, match=r"feature_info of the maps that FPN takes:\n  row 0: chs=None"):
        FPN([{"reduction": 4, "name": "a"}])
    with pytest.raises(ContractError, match="stands in several rows"):
        ChannelMapper([FeatureInfo(8, 4, "a"), FeatureInfo(8, 4, "a")])
    with pytest.raises(ArgumentError, match="PAFPN is built from the feature_info of Sequential: pass that"):
        PAFPN(nn.Sequential())


def test_levels_may_be_those_chosen_with_timm():
    model = timm.create_model("resnet10t", features_only=True, out_indices=[2, 3])
    assert FPN(model.feature_info, 8).takes.reduction() == [8, 16]


def test_a_neck_takes_the_maps_it_was_built_for():
    neck = FPN(LEVELS, 8)
    right = [images(1, 8, 8, 8), images(1, 16, 4, 4)]
    for wrong in (right[:1], right[::-1], [right[0], right[1][0]]):
        with pytest.raises(
            InputError, match=r"FPN takes 2 maps \(N, chs, h, w\) of \[8, 16\] channels, got shapes \[\("
        ):
            neck(wrong)
    with pytest.raises(InputError, match="takes a list of maps, got Tensor: wrap a single map in a list"):
        neck(right[0])


@pytest.mark.parametrize(
    "build", [lambda: FPN(LEVELS, 0), lambda: PAFPN(LEVELS, -1), lambda: BiFPN(LEVELS, 0), lambda: ASPP(ONE, 2.5)]
)
def test_maps_have_channels(build):
    with pytest.raises(ArgumentError, match="expected a positive int"):
        build()


@pytest.mark.parametrize("neck", [SimpleFeaturePyramid, ASPP])
def test_a_neck_of_one_map_refuses_several(neck):
    with pytest.raises(ContractError, match=r"takes one map.*, got\n(.|\n)*out_indices=\[-1\]"):
        neck(LEVELS)


def test_simple_feature_pyramid_refuses_a_model_that_has_a_pyramid():
    with pytest.raises(ContractError, match=r"maps at \[2, 4, 8, 16, 32\] pixels, which are a pyramid already"):
        SimpleFeaturePyramid(levels_of("resnet18", [-1]))


def test_strides_of_a_patch_of_14_pixels_must_be_whole():
    patch = [FeatureInfo(16, 14, "blocks.11")]
    with pytest.raises(
        ContractError, match=r"cells of 3.5 pixels(.*)as \(2.0, 1.0, 0.5, 0.25\), or .*Resample\(feature_info, 16\)"
    ):
        SimpleFeaturePyramid(patch, 8)
    neck = SimpleFeaturePyramid(patch, 8, scale_factors=(2, 1, 0.5, 0.25))
    assert neck.feature_info.reduction() == [7, 14, 28, 56]
    assert [map_.shape[-1] for map_ in neck([images(1, 16, 16, 16)])] == [32, 16, 8, 4]
    # doubling, so that every other neck takes them
    assert PAFPN(neck.feature_info, 8).feature_info.reduction() == [7, 14, 28, 56]


@pytest.mark.parametrize("scales", [(), (3, 1), (1, 2), (4, 1), (1, 0), (0.5, -0.25)])
def test_scale_factors_must_halve(scales):
    with pytest.raises(ArgumentError, match="expected powers of two, each half of the one before"):
        SimpleFeaturePyramid(ONE, 8, scale_factors=scales)


def test_a_map_too_small_to_be_pooled_is_refused():
    with pytest.raises(InputError, match=r"a map of 1x4 cells cannot be pooled to 0\.5 of its sides"):
        SimpleFeaturePyramid(ONE, 8)([images(1, 16, 1, 4)])


@pytest.mark.parametrize("arguments", [{"extra": -1}, {"repeats": 0}, {"repeats": 1}])
def test_bifpn_fuses_two_levels_or_more(arguments):
    with pytest.raises(ArgumentError, match="expected two or more levels"):
        BiFPN(ONE, 8, **arguments)


def test_extra_levels_need_channels():
    for chs in ([], [8, 1]):
        with pytest.raises(ArgumentError, match="expected the channels, 2 or more, of each added map"):
            ExtraLevels(LEVELS, chs)


@pytest.mark.parametrize("block", [LastLevelP6P7(9, 8), LastLevelP6P7(16, 9), LastLevelP6P7(9, 9)])
def test_fpn_refuses_extra_blocks_of_other_channels(block):
    with pytest.raises(ArgumentError, match=r"does not fit: expected \(8, 8\), or \(16, 8\)"):
        FPN(LEVELS, 8, extra_blocks=block)


def test_fpn_refuses_extra_blocks_it_cannot_describe():
    with pytest.raises(ArgumentError, match="put other coarser maps after it with ExtraLevels"):
        FPN(LEVELS, 8, extra_blocks=ExtraFPNBlock())


def test_aspp_refuses_to_train_on_a_single_image():
    neck = ASPP(ONE, 8)
    with pytest.raises(InputError, match="train ASPP on two or more"):
        neck([images(1, 16, 4, 4)])
    neck.eval()([images(1, 16, 4, 4)])


def test_a_pipeline_starts_with_an_extractor():
    with pytest.raises(ContractError, match=r"starts with an extractor, got ResNet: create_model\(..., features_only"):
        Pipeline(featx.create_model("resnet18"))


def test_a_pipeline_resumes_with_necks_that_fit():
    extractor = featx.create_model("resnet18", features_only=True, out_indices=3)
    with pytest.raises(ContractError, match=r"neck 0 is Conv2d, no featx\.necks\.Neck"):
        Pipeline(extractor, nn.Conv2d(3, 3, 1))
    fpn = FPN(extractor.feature_info, 8)
    with pytest.raises(ContractError, match=r"PAFPN \(neck 1\) was built for\n(.|\n)*but would get\n"):
        Pipeline(extractor, fpn, PAFPN(extractor.feature_info, 8))
