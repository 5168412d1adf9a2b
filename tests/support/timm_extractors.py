"""Models of timm with random values, and their extractors."""

import pytest
import torch
from conftest import images, randomize

from featx import FeatureExtractWrapper
from featx.bridges import timm as bridge

# One of each of timm's wrappers: list, getter, its own two, hooks.
KINDS = ["test_resnet", "test_vit", "mobilenetv3_small_050"]
KINDS += [pytest.param(name, marks=pytest.mark.bridges) for name in ("hrnet_w18_small", "pit_ti_224")]


def built(name, **arguments):
    torch.manual_seed(0)
    return randomize(bridge.build(name, **arguments))


def on_meta(name, **arguments):
    with torch.device("meta"):
        return bridge.build(name, **arguments).eval()


def extractor(model, *args, **choice):
    return FeatureExtractWrapper(bridge.pyramid(model), *args, **choice)


def batch(pyramid, count=2):
    return images(count, pyramid.in_chans, *pyramid.data_config.size)


def maps_of(module, x):
    with torch.no_grad():
        return module(x)
