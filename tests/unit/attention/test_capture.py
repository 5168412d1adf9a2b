"""Attention maps of the selected blocks, compared with the definition."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, images, randomize, relative_difference
from support.attention_models import inputs_of, tiny_vit
from support.attention_models import same_weights_every_time as same_weights_every_time
from torch import Tensor, nn

import featx
from featx import ArgumentError, ContractError, InputError
from featx.attention import capture_attention

WITHOUT = [name for name in SMALL if not name.startswith(("vit", "mobilevit"))]
WITH = [name for name in SMALL if name not in WITHOUT]


def by_hand(attention: nn.Module, x: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(dim)) of a plain module, element by element of its projection's rows."""
    heads, dim = attention.heads, x.shape[-1]
    q, k, _ = (x @ attention.qkv.weight.T + attention.qkv.bias).split(dim, dim=-1)
    size = dim // heads
    rows = []
    for head in range(heads):
        chosen = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bqc,bkc->bqk", q[..., chosen], k[..., chosen]) / size**0.5
        raised = scores.exp()
        rows.append(raised / raised.sum(-1, keepdim=True))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("arch", [{}, {"registers": 4}, {"class_token": False, "global_pool": "avg"}])
def test_maps_are_those_of_the_definition(arch):
    model, x = tiny_vit(**arch).double(), images(2, 3, 64, 80).double()
    with torch.no_grad(), capture_attention(model) as seen:
        model(x)
    assert list(seen.maps) == ["blocks.0", "blocks.1", "blocks.2"]
    for name, map_ in seen.maps.items():
        expected = by_hand(model.get_submodule(f"{name}.attn"), inputs_of(model, f"{name}.attn", x))
        assert map_.shape == (2, 3, *2 * [20 + model.num_prefix_tokens])
        assert relative_difference(map_, expected) <= 1e-12  # fp64


def test_maps_of_mobilevit_stand_per_pixel_of_a_patch():
    model, x = randomize(featx.create_model("mobilevit_xxs")).double(), images(2, 3, 128, 96).double()
    block = "stages.3.1.transformer.0"
    with torch.no_grad(), capture_attention(model, [block]) as seen:
        model(x)
    expected = by_hand(model.get_submodule(f"{block}.attn"), inputs_of(model, f"{block}.attn", x))
    assert seen.maps[block].shape == (2 * 4, 4, 12, 12)
    assert relative_difference(seen.maps[block], expected) <= 1e-12  # fp64


def test_maps_of_mobilevit_come_as_a_grid_of_pixels():
    model, x = randomize(featx.create_model("mobilevit_xxs")), images(2, 3, 128, 96)
    block = "stages.3.1.transformer.0"
    with torch.no_grad(), capture_attention(model, [block]) as seen:
        model(x)
    grid = seen.grid(block, (4, 3))  # the map has 8x6 pixels, in patches of 2x2
    assert grid.shape == (2, 4, 8 * 6, 4, 3)
    for row, column in ((0, 0), (3, 4), (7, 1)):
        position, cell = row % 2 * 2 + column % 2, row // 2 * 3 + column // 2
        for n in range(2):
            assert torch.equal(grid[n, :, row * 6 + column].flatten(1), seen.maps[block][n * 4 + position, :, cell])


def test_scores_of_mobilevitv2_are_one_per_patch_and_pixel():
    model, x = randomize(featx.create_model("mobilevitv2_050")).double(), images(2, 3, 128, 96).double()
    block = "stages.3.1.transformer.1"
    with torch.no_grad(), capture_attention(model) as seen:
        model(x)
    attention = model.get_submodule(f"{block}.attn")
    query = F.conv2d(inputs_of(model, f"{block}.attn", x), attention.qkv_proj.weight[:1], attention.qkv_proj.bias[:1])
    raised = query.exp()
    assert len(seen.maps) == 9
    assert seen.maps[block].shape == (2, 1, 4, 12)
    assert relative_difference(seen.maps[block], raised / raised.sum(-1, keepdim=True)) <= 1e-12  # fp64
    assert seen.grid(block, (4, 3)).shape == (2, 1, 4, 4, 3)


def test_a_grid_leaves_prefix_tokens_out_of_the_keys():
    model = tiny_vit(registers=4)
    with torch.no_grad(), capture_attention(model, [0]) as seen:
        model(images(2, 3, 64, 80))
    grid = seen.grid("blocks.0", (4, 5))
    assert grid.shape == (2, 3, 25, 4, 5)
    assert torch.equal(grid.flatten(-2), seen.maps["blocks.0"][..., 5:])
    with pytest.raises(InputError, match="has 25 keys, which do not form a grid of 6x5"):
        seen.grid("blocks.0", (6, 5))


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_numbers_of_the_forward_stay_the_same_bit_for_bit(name, gradients):
    model, x = randomize(featx.create_model(name)), images(1, 3, 64, 96)
    expected = model(x)
    with capture_attention(model, gradients=gradients) as seen:
        assert torch.equal(model(x), expected)
    assert all(relative_difference(map_.sum(-1), torch.ones(map_.shape[:-1])) <= 1e-5 for map_ in seen.maps.values())
    assert torch.equal(model(x), expected)


def test_parameters_get_the_same_gradients_bit_for_bit():
    model, x, found = tiny_vit(), images(2, 3, 64, 64), []
    for gradients in (None, False, True):
        model.zero_grad()
        if gradients is None:
            model(x).square().sum().backward()
        else:
            with capture_attention(model, gradients=gradients):
                model(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*found, strict=True))


@pytest.mark.parametrize("out_indices", [None, [0, 1]])
def test_extractors_are_captured_under_the_same_names(out_indices):
    model, x = tiny_vit(), images(1, 3, 64, 64)
    extractor = featx.FeatureExtractWrapper(model, out_indices)
    with torch.no_grad():
        with capture_attention(model) as whole:
            model(x)
        maps = extractor(x)
        with capture_attention(extractor) as seen:
            captured = extractor(x)
    assert list(seen.maps) == [f"blocks.{i}" for i in out_indices or range(3)]
    assert all(torch.equal(map_, whole.maps[name]) for name, map_ in seen.maps.items())
    assert all(torch.equal(a, b) for a, b in zip(maps, captured, strict=True))


@pytest.mark.parametrize(
    ("blocks", "names"),
    [
        ([-1, 0], ["blocks.0", "blocks.2"]),
        (["blocks.1"], ["blocks.1"]),
        (["blocks.1.attn", -3], ["blocks.0", "blocks.1"]),
        (None, ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_blocks_are_chosen_by_number_and_name(blocks, names):
    model = tiny_vit()
    with torch.no_grad(), capture_attention(model, blocks) as seen:
        model(images(1, 3, 64, 64))
    assert sorted(seen.maps) == names


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ([3], r"there is no block 3\. Those with attention are:\n  0: blocks\.0\n"),
        (["blocks.9"], "there is no block 'blocks.9'"),
        ([0, "blocks.0"], "asks for a block twice"),
        ([True], "True is neither a number nor a name"),
        ([0.5], "0.5 is neither a number nor a name"),
        (-1, "expected None for all, or numbers and names in a list"),
        ("blocks.0", "expected None for all, or numbers and names in a list"),
        ([], "expected None for all, or numbers and names in a list"),
    ],
)
def test_blocks_that_do_not_exist_are_named(blocks, problem):
    with pytest.raises(ArgumentError, match=problem), capture_attention(tiny_vit(), blocks):
        pass


@pytest.mark.parametrize("name", WITHOUT)
def test_a_model_without_attention_says_what_it_has(name):
    with pytest.raises(ContractError, match=r"has no attention among tokens .*: it") as error:
        capture_attention(featx.create_model(name)).__enter__()
    assert ("Conv2d" in str(error.value)) != ("Attention have no map" in str(error.value))


def test_channel_attention_is_not_taken_for_attention_among_tokens():
    with pytest.raises(ContractError, match=r"its .*EfficientChannelAttention have no map that could be proven"):
        capture_attention(featx.create_model("ecaresnet26t")).__enter__()
