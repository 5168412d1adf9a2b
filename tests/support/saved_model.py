"""A model to save."""

import pytest
from conftest import randomise
from torch import nn

import featx

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return randomise(featx.create_model(NAME, num_classes=3), seed=2)
