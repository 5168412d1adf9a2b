"""A model to save."""

import pytest
from conftest import randomize
from torch import nn

import featx

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return randomize(featx.create_model(NAME, num_classes=3), seed=2)
