"""Transformers with attention to capture."""

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import featx


@pytest.fixture(autouse=True)
def same_weights_every_time():
    torch.manual_seed(0)


def tiny_vit(**arch):
    return randomize(featx.create_model("vit_tiny_patch16_224", **{"dim": 48, "depth": 3, "image_size": 64, **arch}))


def inputs_of(model: nn.Module, path: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]
