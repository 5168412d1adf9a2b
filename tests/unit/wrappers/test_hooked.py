"""HookedPyramid: which models it refuses to cut."""

import itertools

import pytest
import torch
from torch import nn

import featx
from featx import ContractError


class Counting(nn.Module):
    """Multiplies its map by the number of its forwards, also by those of its copies."""

    calls = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scaled = nn.Conv2d(3, 4, 2, 2), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.conv(x) * next(Counting.calls))


def test_a_forward_that_varies_from_run_to_run_is_refused():
    with pytest.raises(ContractError, match="forward of Counting varies from run to run"):
        featx.tap(Counting(), ["scaled"])


def test_a_cut_pyramid_cannot_be_cut_again():
    cut = featx.tap(nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.ReLU()), ["1"])._inner
    with pytest.raises(ContractError, match="cut the original pyramid instead"):
        cut.cut([0])
