"""`image_size` of native models: the grid of a ViT's positions, the weights put onto it, and the preprocessing."""

import pytest
import timm
import torch
from conftest import images, randomize, relative_difference
from timm.layers import resample_abs_pos_embed

import featx
from featx import ArgumentError

TINY = {"depth": 1, "dim": 48, "heads": 3}
NAME = "vit_tiny_patch16_224"


@pytest.mark.parametrize("name", ["resnet18", NAME])
@pytest.mark.parametrize(("image_size", "sides"), [((192, 256), (192, 256)), ([64, 96], (64, 96)), (96, (96, 96))])
def test_images_of_that_size_are_expected(name, image_size, sides):
    small = TINY if name == NAME else {}
    extractor = featx.create_model(name, features_only=True, image_size=image_size, **small).eval()
    assert extractor.data_config.size == sides
    assert extractor.default_cfg["input_size"] == (3, *sides)
    if name == NAME:
        assert extractor.get_parameter("pos_embed").shape == (1, 1 + sides[0] // 16 * (sides[1] // 16), 48)
        assert extractor(images(1, 3, *sides))[0].shape[2:] == (sides[0] // 16, sides[1] // 16)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (96, 64)])
def test_a_vit_of_that_size_equals_timms_also_at_other_sizes(size):
    sized = {"img_size": size, "dynamic_img_size": True, "embed_dim": 48, "depth": 1, "num_heads": 3}
    theirs = randomize(timm.create_model(NAME, **sized))
    ours = featx.create_model(NAME, image_size=size, checkpoint_path=theirs.state_dict(), **TINY).eval()
    for other in (size, (96, 96), (48, 128)):
        assert relative_difference(ours(images(1, 3, *other)), theirs(images(1, 3, *other))) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (64, 144), (96, 96)])
def test_positions_of_published_weights_are_interpolated_to_its_grid(size, tmp_path):
    saved = randomize(featx.create_model(NAME, image_size=(96, 96), **TINY))
    featx.save(saved, tmp_path)
    ours = featx.create_model(f"local-dir:{tmp_path}", pretrained=True, image_size=size)
    grid = size[0] // 16, size[1] // 16
    # 4 x 9 positions are as many as 6 x 6, and other ones
    expected = resample_abs_pos_embed(saved.pos_embed, list(grid), num_prefix_tokens=1)
    torch.testing.assert_close(ours.pos_embed, expected)


def test_a_model_of_another_size_is_saved_with_it(tmp_path):
    model = randomize(featx.create_model(NAME, image_size=(64, 144), **TINY))
    featx.save(model, tmp_path)
    again = featx.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert (again.grid, again.data_config.size) == ((4, 9), (64, 144))
    assert torch.equal(again.pos_embed, model.pos_embed)
    square = featx.create_model(f"local-dir:{tmp_path}", pretrained=True, image_size=96)
    assert square.grid == (6, 6)
    assert not torch.equal(square.pos_embed, model.pos_embed)


@pytest.mark.parametrize("image_size", [0, -32, 2.5, "224", (64,), (64, 96, 3), (64, -96), (64, 2.0), True])
@pytest.mark.parametrize("name", ["resnet18", NAME])
def test_what_is_not_a_size_is_refused(name, image_size):
    with pytest.raises(ArgumentError, match=r"image_size=.*: expected .height, width. or one side, in pixels"):
        featx.create_model(name, image_size=image_size)


def test_a_vit_refuses_less_than_a_patch():
    with pytest.raises(ArgumentError, match=r"image_size=\(64, 8\) is smaller than a patch \(16 pixels\)"):
        featx.create_model(NAME, image_size=(64, 8))
