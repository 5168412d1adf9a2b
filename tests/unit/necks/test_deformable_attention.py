"""Deformable attention, compared with that of Deformable DETR in transformers."""

import pytest
import torch
from conftest import images
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from featx import ArgumentError
from featx.necks.deformable_attention import DeformableAttention


def drawn(attention: DeformableAttention) -> DeformableAttention:
    with torch.no_grad():
        for seed, parameter in enumerate(attention.parameters()):
            parameter.copy_(images(*parameter.shape, seed=seed))
    return attention


@pytest.mark.parametrize("sizes", [[(5, 7)], [(8, 6), (4, 3), (2, 2)]])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_outputs_are_those_of_transformers(sizes, ratio):
    attention = drawn(DeformableAttention(16, len(sizes), heads=4, points=3, ratio=ratio))
    queries, cells = images(2, 11, 16), images(2, sum(h * w for h, w in sizes), 16, seed=1)
    centers = images(11, len(sizes), 2, seed=2).sigmoid()
    with torch.no_grad():
        values = attention.value_proj(cells).unflatten(-1, (4, -1))
        offsets = attention.sampling_offsets(queries).unflatten(-1, (4, len(sizes), 3, 2))
        weights = attention.attention_weights(queries).unflatten(-1, (4, -1)).softmax(-1)
        sides = torch.tensor([[width, height] for height, width in sizes])
        locations = centers[:, None, :, None] + offsets / sides[:, None]
        expected = MultiScaleDeformableAttention()(
            values, torch.tensor(sizes), sizes, None, locations, weights.unflatten(-1, (len(sizes), 3)), 64
        )
        expected = attention.output_proj(expected)
        torch.testing.assert_close(attention(queries, centers, cells, sizes), expected, rtol=1e-5, atol=1e-5)


def test_points_of_fresh_weights_surround_the_query_further_away_each():
    bias = DeformableAttention(16, 1, heads=4, points=2).sampling_offsets.bias.detach().unflatten(0, (4, 2, 2))
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])  # x and y of four heads
    torch.testing.assert_close(bias, torch.stack([expected, 2 * expected], 1))


def test_channels_that_heads_do_not_divide_are_refused():
    with pytest.raises(ArgumentError, match=r"heads=5: 16 channels, and 16 inside, are not a multiple of it"):
        DeformableAttention(16, 1, heads=5)
