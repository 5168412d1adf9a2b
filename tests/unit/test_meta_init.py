"""Models without values: shapes and names alone."""

import pytest
import torch
from torch import nn

import featx
from featx.meta_init import init_empty_weights
from featx.registry import Variant, lookup


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "repvgg_a0", "mobilevit_xxs"])
def test_they_have_the_names_and_shapes_of_those_with_values(name):
    variant = lookup(name)
    assert isinstance(variant, Variant)
    with init_empty_weights():
        empty = variant.build(variant.config).state_dict()
    full = featx.create_model(name).state_dict()
    assert all(tensor.is_meta for tensor in empty.values())
    assert {n: (t.shape, t.dtype) for n, t in empty.items()} == {n: (t.shape, t.dtype) for n, t in full.items()}


def test_values_are_drawn_again_afterwards():
    with init_empty_weights():
        nn.Linear(2, 2)
    torch.manual_seed(0)
    first = nn.Linear(2, 2).weight
    torch.manual_seed(0)
    assert first.std() > 0
    assert torch.equal(first, nn.Linear(2, 2).weight)
