"""Checkpoints of another shape than the model: which tensors are adapted, and the report of it."""

import pytest
import torch
from conftest import images, randomize, relative_difference
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models._manipulate import adapt_input_conv
from torch import Tensor

import featx
from featx import CheckpointError
from featx.models.layers.mobile import MobileStyle

CNN, VIT = "mobilenetv3_small_050", "vit_tiny_patch16_224"
NARROW = {"dim": 48, "depth": 2, "heads": 3, "num_classes": 5}


def trained(name: str = CNN, **fields) -> dict[str, Tensor]:
    return randomize(featx.create_model(name, **fields)).state_dict()


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_the_first_convolution_takes_other_channels_as_timms_does(in_chans):
    state = trained()
    model = featx.create_model(CNN, in_chans=in_chans, checkpoint_path=state)
    expected = adapt_input_conv(in_chans, state["conv_stem.weight"].clone())
    torch.testing.assert_close(model.conv_stem.weight.detach(), expected)
    words = "summed over the 3 input channels" if in_chans == 1 else f"repeated for {in_chans}"
    assert words in model.load_report.adapted["conv_stem.weight"]


@torch.no_grad()
def test_a_gray_image_gives_what_it_gives_as_a_colored_one():
    state, gray = trained(), images(2, 1, 64, 64)
    colored = featx.create_model(CNN, checkpoint_path=state).eval()(gray.expand(-1, 3, -1, -1))
    for in_chans in (1, 6):
        model = featx.create_model(CNN, in_chans=in_chans, checkpoint_path=state).eval()
        assert relative_difference(model(gray.expand(-1, in_chans, -1, -1)), colored) <= 1e-5


def test_every_convolution_that_sees_the_image_is_adapted():
    state = trained("repvgg_a0")
    report = featx.create_model("repvgg_a0", in_chans=1, checkpoint_path=state).load_report
    assert set(report.adapted) == {"stem.conv_kxk.conv.weight", "stem.conv_1x1.conv.weight"}


def test_channels_that_are_not_three_have_no_rule():
    state = trained(in_chans=4)
    with pytest.raises(CheckpointError, match=r"misshaped  conv_stem.weight: \(16, 4, 3, 3\), the model needs"):
        featx.create_model(CNN, in_chans=2, checkpoint_path=state)


@pytest.mark.parametrize(("name", "fields"), [(VIT, {}), ("vit_small_patch14_reg4_dinov2", {"registers": 2})])
def test_the_grid_of_positions_is_interpolated_as_timms(name, fields):
    state = trained(name, **NARROW, **fields, image_size=112)
    model = featx.create_model(name, **NARROW, **fields, image_size=168, checkpoint_path=state)
    side, prefix = 168 // model.patch_embed.patch, model.num_positioned
    expected = resample_abs_pos_embed(state["pos_embed"], (side, side), num_prefix_tokens=prefix)
    torch.testing.assert_close(model.pos_embed.detach(), expected)
    assert f"interpolated to {side}x{side}" in model.load_report.adapted["pos_embed"]


@pytest.mark.parametrize("patch", [8, 32])
def test_patches_are_resized_as_timms(patch):
    state = trained(VIT, **NARROW, image_size=64)
    model = featx.create_model(VIT, **NARROW, patch=patch, image_size=64, checkpoint_path=state)
    expected = resample_patch_embed(state["patch_embed.proj.weight"], [patch, patch])
    assert relative_difference(model.patch_embed.proj.weight.detach(), expected) <= 1e-5
    assert set(model.load_report.adapted) == {"patch_embed.proj.weight", "pos_embed"}


@torch.no_grad()
def test_bigger_patches_of_an_enlarged_image_give_nearly_the_same_tokens():
    state, image = trained(VIT, **NARROW, image_size=64), images(1, 3, 64, 64)
    small = featx.create_model(VIT, **NARROW, image_size=64, checkpoint_path=state)
    large = featx.create_model(VIT, **NARROW, patch=32, image_size=128, checkpoint_path=state)
    enlarged = torch.cat(
        [
            torch.cat(
                [
                    torch.nn.functional.interpolate(p, (32, 32), mode="bicubic", antialias=True)
                    for p in row.split(16, 3)
                ],
                3,
            )
            for row in image.split(16, 2)
        ],
        2,
    )  # patch by patch, since the embedding sees nothing beyond its patch
    assert relative_difference(large.patch_embed(enlarged), small.patch_embed(image)) <= 1e-4


@pytest.mark.parametrize("shape", [(192, 3, 2, 0), (192, 3, 0, 16), (192, 3, 1, 4096), (96, 3, 8, 8), (192, 2, 8, 8)])
def test_patches_that_cannot_be_resized_are_named(shape):
    state = featx.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        featx.create_model("vit_tiny_patch16_224", depth=1, checkpoint_path=state)


def test_patches_and_channels_change_together():
    state = trained(VIT, **NARROW, image_size=64)
    model = featx.create_model(VIT, **NARROW, patch=8, in_chans=1, image_size=64, checkpoint_path=state)
    how = model.load_report.adapted["patch_embed.proj.weight"]
    assert "summed over" in how
    assert "resized to 8x8" in how


def test_the_background_class_of_a_thousand_and_one_is_left_out():
    state = trained(num_classes=1001)
    model = featx.create_model(CNN, checkpoint_path=state)
    assert torch.equal(model.classifier.weight, state["classifier.weight"][1:])
    assert torch.equal(model.classifier.bias, state["classifier.bias"][1:])
    assert model.load_report.adapted["classifier.bias"] == "without the background class"


def test_the_report_names_what_was_loaded_skipped_and_left_fresh():
    state = trained()
    model = featx.create_model(CNN, num_classes=7, features_only=False, checkpoint_path=state)
    report = model.load_report
    assert report.fresh == ("classifier.weight", "classifier.bias")
    assert dict.fromkeys(report.fresh, "of another size") == report.skipped
    assert set(report.loaded) == state.keys() - set(report.fresh)
    assert report.layout == "native"
    shown = str(report)
    assert f"{len(report.loaded)} tensors loaded" in shown
    assert "skipped  2, of another size: classifier.weight, classifier.bias" in shown


def test_an_extractors_report_says_what_it_had_no_need_of():
    state = trained()
    extractor = featx.create_model(CNN, features_only=True, out_indices=[1], checkpoint_path=state)
    report = extractor.load_report
    assert set(report.loaded) == extractor.state_dict().keys()
    assert set(report.skipped.values()) == {"not needed for the levels asked for"}
    assert set(report.loaded) | set(report.skipped) == state.keys()


def torchvisions(num_classes: int = 1000) -> dict[str, Tensor]:
    from torchvision.models import mobilenet_v3_small

    return randomize(mobilenet_v3_small(num_classes=num_classes)).state_dict()


@torch.no_grad()
def test_what_a_programs_layers_need_is_built_into_the_model():
    from torchvision.models import mobilenet_v3_small

    reference = randomize(mobilenet_v3_small()).eval()
    model = featx.create_model("mobilenetv3_small_100", checkpoint_path=reference.state_dict()).eval()
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}
    assert relative_difference(model(images()), reference(images())) <= 1e-5
    assert model.load_report.layout == "torchvision"
    assert model.data_config.mean == (0.485, 0.456, 0.406)


def test_a_model_that_was_built_otherwise_is_refused_with_what_it_lacks():
    state = torchvisions()
    model = featx.create_model("mobilenetv3_small_100")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"layout of torchvision, whose numbers need {'norm_eps': 0.001}"):
        featx.load_weights(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    right = featx.create_model("mobilenetv3_small_100", norm_eps=1e-3)
    assert featx.load_weights(right, state).layout == "torchvision"


def test_a_setting_that_the_caller_gives_is_kept():
    model = featx.create_model("mobilenetv3_small_100", norm_eps=1e-4, checkpoint_path=torchvisions())
    assert model.bn1.eps == 1e-4


def test_a_layout_can_be_forced_and_must_be_one_that_is_known():
    state = torchvisions()
    model = featx.create_model("mobilenetv3_small_100", checkpoint_path=state, layout="torchvision")
    assert model.load_report.layout == "torchvision"
    with pytest.raises(CheckpointError, match=r"no layout 'pytorch' for this family: choose one of \['native',"):
        featx.create_model("mobilenetv3_small_100", checkpoint_path=state, layout="pytorch")
    with pytest.raises(CheckpointError, match="unexpected features"):
        featx.create_model("mobilenetv3_small_100", checkpoint_path=state, layout="native")
    with pytest.raises(CheckpointError, match="auto_mapping=False takes the model's own names alone"):
        featx.create_model("mobilenetv3_small_100", checkpoint_path=state, layout="torchvision", auto_mapping=False)


def test_a_model_with_a_programs_style_can_be_saved_and_built_again(tmp_path):
    style = MobileStyle(torch.nn.SiLU)
    model = randomize(featx.create_model("test_efficientnet", style=style, num_classes=3))
    featx.save(model, tmp_path)
    again = featx.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))
