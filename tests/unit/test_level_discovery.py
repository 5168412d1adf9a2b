"""Levels that are proposed for any model."""

import pytest
import torch
from conftest import images
from support.tap_models import Tokens, run
from support.tap_models import branches as branches
from torch import nn

from featx import ArgumentError, ContractError
from featx.level_discovery import discover
from featx.tapped_levels import tap


def test_levels_are_proposed_and_can_be_tapped(branches):
    proposal = discover(branches, (64, 96))
    assert [(level.name, level.chs, level.reduction) for level in proposal] == [
        ("right", 8, 2),
        ("down", 16, 4),
        ("deep", 24, 8),
    ]
    assert proposal.map_sizes == ((32, 48), (16, 24), (8, 12))
    assert str(proposal).splitlines()[1].split() == ["right", "8", "1/2", "32x48"]
    assert tap(branches, proposal).feature_info.names() == proposal.names()
    assert str(proposal).startswith("  module")


def test_blocks_are_proposed_where_there_is_one_reduction():
    proposal = discover(Tokens(1))
    assert proposal.names() == ["layers.0", "layers.1", "layers.2"]
    x = images(1, 3, 64, 64)
    assert [map_.shape for map_ in run(tap(Tokens(1), proposal), x)] == [(1, 16, 8, 8)] * 3


def test_levels_can_be_sought_within_a_module(branches):
    whole = nn.ModuleDict({"net": branches})
    whole.forward = branches.forward
    assert discover(branches, within="deep").names() == ["deep.2"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"within": "body"}, ArgumentError, "within='body': Branches has no such module"),
        ({"input_size": (8, 8), "example": torch.empty(1, 3, 8, 8)}, ArgumentError, "pass one of them"),
        ({"within": "head"}, ContractError, "no module that returns a map"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(branches, arguments, error, words):
    with pytest.raises(error, match=words):
        discover(branches, **arguments)
