"""Image sizes that timm's models accept, and the rounding of the cells."""

import re

import pytest
import timm
import torch
from conftest import assert_same, images
from support.timm_extractors import built, extractor, maps_of, on_meta

import featx
from featx import FeatureExtractWrapper
from featx.bridges import timm as bridge
from featx.bridges.timm_image_size import any_size


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
    with pytest.raises(featx.ArgumentError, match="image_size and img_size both say"):
        bridge.build("test_vit", image_size=96, img_size=96)


@pytest.mark.parametrize(
    "name", ["nest_tiny", "halonet26t", pytest.param("crossvit_tiny_240", marks=pytest.mark.bridges)]
)
def test_a_size_an_architecture_cannot_be_built_for_is_refused_with_its_own_reason(name):
    with pytest.raises(featx.ArgumentError, match="cannot be built for images of 192x256 pixels:\n  as it is: "):
        bridge.build(name, image_size=(192, 256))


# Small ones of each class that timm builds for one size or, if told so, for any.
FREE = {
    "deit_tiny_patch16_224": {"depth": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 1)},
    "swinv2_tiny_window8_256": {"depths": (1, 1, 2, 1)},
    "swinv2_cr_tiny_ns_224": {"depths": (1, 1, 2, 1)},
}


@pytest.mark.parametrize("name", FREE)
def test_any_size_runs_by_default_with_the_values_of_timm(name):
    state = built(name, **FREE[name]).state_dict()  # without the tables that timm computes, which stay as they are
    plain = timm.create_model(name, **FREE[name]).eval()
    free = timm.create_model(name, **FREE[name], dynamic_img_size=True).eval()
    ours = bridge.build(name, **FREE[name]).eval()
    for model in (plain, free, ours):
        model.load_state_dict(state)
    taken = extractor(ours)
    own = taken.data_config.size
    cell = max(taken.feature_info.reduction())
    assert taken.data_config == extractor(plain).data_config
    for model, size in ((plain, own), (free, (6 * cell, 8 * cell)), (free, (9 * cell, 5 * cell))):
        with torch.no_grad():
            _, reference = model.forward_intermediates(images(1, 3, *size), norm=False, output_fmt="NCHW")
        assert_same(maps_of(taken, images(1, 3, *size)), reference)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_a_vit_covers_sides_that_its_patches_do_not_divide(name):
    taken = extractor(built(name, **FREE[name]), [-1])
    reduction = taken.feature_info[0].reduction
    assert maps_of(taken, images(1, 3, 97, 161))[0].shape[2:] == (-(-97 // reduction), -(-161 // reduction))
    assert taken.size_divisor == 1


@pytest.mark.parametrize("choice", [{"dynamic_img_size": False}, {"strict_img_size": True}])
def test_a_model_for_one_size_alone_is_a_choice(choice):
    name = "swin_tiny_patch4_window7_224"
    with pytest.raises(featx.InputError, match="takes no images of 192x256 pixels"):
        extractor(on_meta(name, **FREE[name], **choice))(torch.empty(1, 3, 192, 256, device="meta"))


@pytest.mark.parametrize(
    ("name", "size", "divisor", "to"),
    [
        ("swin_tiny_patch4_window7_224", (230, 310), 4, (232, 312)),
        ("tresnet_m", (97, 161), 4, (96, 160)),
        ("levit_128s", (230, 310), 1, (224, 224)),
        ("halonet26t", (128, 128), 1, (256, 256)),
        pytest.param("crossvit_tiny_240", (192, 256), 1, (240, 240), marks=pytest.mark.bridges),
    ],
)
def test_a_refusal_names_the_nearest_size_that_the_model_takes(name, size, divisor, to):
    taken = extractor(on_meta(name, **FREE.get(name, {})), [-1])
    assert taken.size_divisor == divisor
    with pytest.raises(featx.InputError, match=rf"takes no images of .* \(\w.*\): resize them to {to[0]}x{to[1]}"):
        taken(torch.empty(1, 3, *size, device="meta"))
    assert len(taken(torch.empty(1, 3, *to, device="meta"))) == 1


@pytest.mark.parametrize(("name", "size"), [("levit_128s", (192, 256)), ("mvitv2_tiny", (256, 256))])
def test_building_for_a_refused_size_as_the_refusal_says_works(name, size):
    with pytest.raises(featx.InputError, match="takes no images") as refused:
        extractor(built(name), [-1])(images(1, 3, *size))
    said = re.search(r"create_model\('timm/(.*)', image_size=\((\d+), (\d+)\)\)", str(refused.value))
    rebuilt = bridge.build(said[1], image_size=(int(said[2]), int(said[3])))
    (map_,) = maps_of(extractor(rebuilt, [-1]), images(1, 3, *size))
    assert [*map_.shape[2:]] == [-(-side // extractor(rebuilt).feature_info[-1].reduction) for side in size]


def test_a_table_of_positions_that_is_too_short_is_a_refusal():
    with pytest.raises(
        featx.InputError, match=r"no images of 192x256 pixels \(IndexError: .*\): resize them to 224x224$"
    ):
        extractor(built("mvitv2_tiny"), [-1])(images(1, 3, 192, 256))


BUILT_FOR_FEW = ["nest_tiny", pytest.param("crossvit_tiny_240", marks=pytest.mark.bridges)]


@pytest.mark.parametrize("name", BUILT_FOR_FEW)
def test_the_size_that_an_unbuildable_one_is_answered_with_can_be_built(name):
    with pytest.raises(featx.ArgumentError, match="build it with image_size=") as refused:
        on_meta(name, image_size=(192, 256))
    height, width = map(int, re.search(r"build it with image_size=\((\d+), (\d+)\)", str(refused.value)).groups())
    taken = extractor(on_meta(name, image_size=(height, width)), [-1])
    assert len(taken(torch.empty(1, 3, height, width, device="meta"))) == 1


@pytest.mark.bridges
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in timm.list_models() if any_size(name, {}, bridge.create)])
def test_every_architecture_that_can_takes_other_sizes_and_keeps_its_names(name):
    with torch.device("meta"):
        plain = timm.create_model(name)
    model = on_meta(name)
    assert {key: t.shape for key, t in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in plain.state_dict().items()
    }
    taken = extractor(model, [-1])
    (height, width), step = taken.data_config.size, max(taken.feature_info[0].reduction, taken.size_divisor)
    for size in ((height, width), (height, width + step), (height + 2 * step, width - step)):
        cells = [side // taken.feature_info[0].reduction for side in size]
        assert list(taken(torch.empty(1, taken.in_chans, *size, device="meta"))[0].shape[2:]) == cells


def test_images_of_a_size_the_model_does_not_take_are_refused():
    model = bridge.build("levit_128s")
    with pytest.raises(featx.InputError, match=r"takes no images of 192x256 pixels .* image_size=\(192, 256\)"):
        extractor(model)(images(1, 3, 192, 256))


def test_images_that_the_architecture_would_resize_are_refused():
    model = bridge.build("crossvit_tiny_240")
    with pytest.raises(featx.InputError, match="takes no images of 192x256 pixels"):
        extractor(model)(images(1, 3, 192, 256))
