"""Extractors that are built in inference mode equal others."""

import pytest
import torch
from conftest import images
from torch import nn

import featx


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1))


def named(name, **arch):
    return lambda: featx.create_model(name, features_only=True, **arch)


MADE = {
    "native": named("resnet10t"),
    "native vit": named("vit_tiny_patch16_224", depth=2),
    "timm": named("timm/resnet10t"),
    "timm vit": named("timm/vit_tiny_patch16_224", depth=2),
    "timm swin": named("timm/swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)),
    "torchvision": named("torchvision/resnet18"),
    "torchvision swin": named("torchvision/swin_t"),
    "transformers": named("transformers/resnet"),
    "transformers swin": named("transformers/swin"),
    "tap": lambda: featx.tap(Plain(), ["0", "2"]),
    "discover": lambda: featx.tap(net := Plain(), featx.discover(net)),
}


@pytest.mark.parametrize("kind", MADE)
def test_an_extractor_made_in_inference_mode_is_the_same(kind):
    usual = MADE[kind]()
    with torch.inference_mode():
        made = MADE[kind]()
        featx.verify(made, sizes=((224, 224),))
        assert made.feature_info.names() == usual.feature_info.names()
        made.load_state_dict(usual.state_dict())
        usual.eval(), made.eval()
        x = images(1, 3, 224, 224)
        assert all(map(torch.equal, made(x), usual(x)))
