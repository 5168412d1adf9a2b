"""Attention as a heat map over a photograph: its row and its grid."""

import pytest
import torch
from conftest import randomize
from PIL import Image

import featx
from featx import ArgumentError, ContractError
from featx.attention import Attention
from featx.explain import attention_gradcam, attention_rollout, class_attention, patches_of
from featx.viz.attention_maps import attention_heats, gradcam_heats, heads_of, patches_in, rollout_heats
from featx.viz.model_view import as_seen, seen_part


def pair(height: int, width: int, prefix: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, prefix, 8), torch.zeros(1, 8, height, width)


def seen_of(batch: int, queries: int, keys: int, heads: int = 2, positions: int = 1, blocks: int = 1) -> Attention:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(batch, heads, queries, keys, generator=generator).softmax(-1) for _ in range(blocks)]
    names = [f"blocks.{i}" for i in range(blocks)]
    return Attention(dict(zip(names, weights, strict=True)), {}, dict.fromkeys(names, positions))


@pytest.mark.parametrize(
    ("seen", "pairs", "expected"),
    [
        (seen_of(1, 13, 13), [pair(3, 4, 1)], (3, 4, 1)),
        (seen_of(1, 12, 12), [pair(3, 4)], (3, 4, 0)),
        (seen_of(1, 17, 17), [pair(3, 4, 5)], (3, 4, 5)),  # registers
        (seen_of(4, 6, 6, positions=4), [pair(12, 8), pair(6, 4)], (3, 2, 0)),  # MobileViT's patches of 2x2 pixels
        (seen_of(1, 4, 6), [pair(12, 8), pair(6, 4)], (3, 2, 0)),  # MobileViTv2
        (seen_of(1, 60, 2), [pair(6, 10)], (1, 2, 0)),  # pooled keys, rounded down
        (seen_of(1, 1, 12), [pair(3, 4, 1)], (3, 4, 0)),  # an attention pool that leaves the class token out
    ],
)
def test_keys_lie_on_the_grid_of_a_map(seen, pairs, expected):
    patches = patches_in(seen, "blocks.0", pairs)
    assert (patches.height, patches.width, patches.prefix) == expected


def test_windows_have_no_one_picture():
    with pytest.raises(ContractError, match=r"blocks\.0 attends within 6 windows .*: choose another block"):
        patches_in(seen_of(6, 49, 49), "blocks.0", [pair(14, 21)])


def test_keys_that_are_no_grid_are_refused():
    with pytest.raises(ContractError, match=r"attends to 13 tokens, which do not form a grid .* \(maps are 6x4\)"):
        patches_in(seen_of(1, 13, 13), "blocks.0", [pair(6, 4)])


def test_a_row_is_the_class_tokens():
    seen, pairs = seen_of(1, 13, 13), [pair(3, 4, 1)]
    heads = heads_of(seen.maps["blocks.0"], patches_in(seen, "blocks.0", pairs))
    assert torch.equal(heads, seen.maps["blocks.0"][0, :, 0, 1:].unflatten(-1, (3, 4)))


def test_a_row_is_the_mean_over_the_patches_without_class_token():
    seen, pairs = seen_of(1, 12, 12), [pair(3, 4)]
    heads = heads_of(seen.maps["blocks.0"], patches_in(seen, "blocks.0", pairs))
    assert torch.allclose(heads, seen.maps["blocks.0"][0].mean(1).unflatten(-1, (3, 4)))


def test_a_point_chooses_the_row_of_its_patch():
    seen, pairs = seen_of(1, 13, 13), [pair(3, 4, 1)]
    heads = heads_of(seen.maps["blocks.0"], patches_in(seen, "blocks.0", pairs), (0.6, 0.4))  # column 2, row 1
    assert torch.equal(heads, seen.maps["blocks.0"][0, :, 1 + 4 + 2, 1:].unflatten(-1, (3, 4)))


def test_a_point_among_pooled_queries_is_refused():
    seen = seen_of(1, 1, 12)
    with pytest.raises(ArgumentError, match="the queries here are not patches"):
        heads_of(seen.maps["blocks.0"], patches_in(seen, "blocks.0", [pair(3, 4)]), (0.5, 0.5))


def test_rows_of_pixels_that_attend_each_by_itself_are_averaged():
    seen, pairs = seen_of(4, 6, 6, positions=4), [pair(6, 4)]
    heads = heads_of(seen.maps["blocks.0"], patches_in(seen, "blocks.0", pairs))
    assert torch.allclose(heads, seen.maps["blocks.0"].mean((0, 2)).unflatten(-1, (3, 2)))


def test_a_point_chooses_the_row_of_its_pixel():
    seen, pairs = seen_of(4, 6, 6, positions=4), [pair(6, 4)]
    patches = patches_in(seen, "blocks.0", pairs)
    heads = heads_of(seen.maps["blocks.0"], patches, (0.7, 0.9))  # row 5, column 2 of 6x4: row 2, column 1 of 3x2
    assert torch.equal(heads, seen.maps["blocks.0"][2, :, 2 * 2 + 1].unflatten(-1, (3, 2)))


def test_one_block_is_shown_by_head_and_several_by_their_means():
    pairs = [pair(3, 4, 1)]
    one, several = attention_heats(seen_of(1, 13, 13), pairs), attention_heats(seen_of(1, 13, 13, blocks=2), pairs)
    assert [caption.split(" · ")[0] for caption in one] == [
        "blocks.0\nmean of 2 heads",
        "blocks.0\nhead 0",
        "blocks.0\nhead 1",
    ]
    assert [caption.split(" · ")[0] for caption in several] == [
        "blocks.0\nmean of 2 heads",
        "blocks.1\nmean of 2 heads",
    ]
    seen = seen_of(1, 13, 13)
    assert torch.allclose(next(iter(one.values())), class_attention(seen.maps["blocks.0"], (3, 4))[0])


def test_rollout_goes_through_all_blocks():
    seen = seen_of(1, 13, 13, blocks=3)
    ((caption, heat),) = rollout_heats(seen, [pair(3, 4, 1)]).items()
    assert caption == "rollout through 3 blocks, blocks.0 to blocks.2\n4×3 cells"
    assert torch.equal(heat, attention_rollout(seen.maps, (3, 4))[0])


def test_rollout_through_blocks_with_different_tokens_is_refused():
    seen = seen_of(1, 12, 12)
    seen.maps["blocks.1"], seen.positions["blocks.1"] = seen_of(1, 48, 48).maps["blocks.0"], 1
    with pytest.raises(ContractError, match="rollout multiplies blocks with the same tokens: expected maps"):
        rollout_heats(seen, [pair(3, 4), pair(6, 8)])


def test_gradcam_of_attention_is_the_map_by_its_positive_gradient():
    seen = seen_of(1, 13, 13)
    seen.gradients["blocks.0"] = gradient = torch.randn(1, 2, 13, 13)
    ((_, heat),) = gradcam_heats(seen, [pair(3, 4, 1)]).items()
    assert torch.allclose(heat, attention_gradcam(seen.maps["blocks.0"], gradient, (3, 4))[0])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "mobilevit_xxs", "mobilevitv2_050"])
def test_real_models_have_heats_of_the_aspect_of_the_image(name):
    extractor = randomize(featx.create_model(name, features_only=True, output="tokens")).eval()
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad(), featx.capture_attention(extractor, [0, -1]) as seen:
        pairs = extractor(images)
    for heat in attention_heats(seen, pairs).values():
        assert heat.shape[1] == 2 * heat.shape[0]
        assert heat.min() >= 0
        assert heat.sum() <= 1 + 1e-5


def test_the_grid_of_a_vit_is_the_one_that_its_map_has():
    extractor = randomize(featx.create_model("vit_tiny_patch16_224", features_only=True, output="tokens")).eval()
    with torch.no_grad(), featx.capture_attention(extractor, [3]) as seen:
        pairs = extractor(torch.randn(1, 3, 64, 96))
    (mean, *heads) = attention_heats(seen, pairs).values()
    assert torch.equal(torch.stack(heads), patches_of(seen.maps["blocks.3"], (4, 6))[0])
    assert torch.allclose(mean, torch.stack(heads).mean(0))


# the part of a photograph that a model sees


def test_a_model_of_any_size_sees_the_whole_photograph():
    extractor, image = featx.create_model("resnet18", features_only=True), Image.new("RGB", (120, 60))
    assert seen_part(image, extractor) is image
    assert torch.equal(as_seen(image, extractor, 32), featx.transform_whole(extractor, size=32)(image)[None])


def test_a_model_of_one_size_sees_the_largest_part_about_the_center():
    name, one_size = "timm/vit_tiny_patch16_224", {"dynamic_img_size": False}
    extractor = featx.create_model(name, features_only=True, out_indices=[0], **one_size)
    image = Image.linear_gradient("L").rotate(90).resize((120, 60)).convert("RGB")  # from dark to bright in x
    part = seen_part(image, extractor)
    assert part.size == (60, 60)
    assert part.getpixel((0, 30)) == image.getpixel((30, 30))
    assert as_seen(part, extractor).shape == (1, 3, 224, 224)
    assert seen_part(part, extractor) is part
    with pytest.raises(ArgumentError, match="size=32: this model takes 224x224 pixels alone"):
        seen_part(image, extractor, size=32)
