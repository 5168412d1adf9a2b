"""Convolutions of single pixels as products of matrices in the onednn runtime: where they are faster, and right."""

from collections import Counter

import pytest
import torch
from conftest import COPIES, SMALL, assert_same, images, randomise, worst
from torch import nn

import featx
from featx import FeatureExtractWrapper
from featx.runtime.packed import Activation, Window
from featx.runtime.product import FEW, FEW_RESULTS, is_product, is_small

TOLERANCE = 1e-4  # of the largest value: other kernels sum in another order
FAST = ["mobilenetv3_small_050", "test_efficientnet", "resnest14d"]
REST = [name for name in SMALL if name not in FAST]
ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh]

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN"),
    pytest.mark.usefixtures("tolerant_of_torch"),
]


def kinds(optimized):
    return Counter(type(module).__name__ for module in optimized._engine.graph.modules())


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.sweep) for name in REST)])
def test_maps_are_those_of_the_original(name):
    original = randomise(featx.create_model(name, features_only=True))
    size = original._inner.fixed_size or (64, 96)
    optimized = featx.optimize(original, runtime="onednn", example=images(1, 3, *size))
    assert name not in FAST or kinds(optimized)["Product"]
    for batch in (1, 3):
        assert worst(optimized, original, images(batch, 3, *size)) < TOLERANCE


class Pixels(nn.Module):
    """Convolutions of single pixels with an activation, with a sum, and with a sum and an activation after it."""

    feature_info = tuple({"chs": 8, "reduction": 1, "name": name} for name in ("first", "second", "third"))
    is_rewritten = True

    def __init__(self, act):
        super().__init__()
        self.act, self.first = act(), nn.Conv2d(3, 8, 1)
        self.second, self.third = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1)

    def forward_features(self, x):
        first = self.act(self.first(x))
        second = self.second(first) + first
        return [first, second, self.act(self.third(second) + first)]


def pixels(act=nn.ReLU):
    torch.manual_seed(0)
    return FeatureExtractWrapper(randomise(Pixels(act))).eval()


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_and_sums_follow_the_product(act):
    original = pixels(act)
    optimized = featx.optimize(original, runtime="onednn", example=images(1, 3, 8, 12))
    assert kinds(optimized).items() >= {"Product": 1, "ProductAdd": 2}.items()
    assert not any(node.op == "call_function" for node in optimized._engine.graph.graph.nodes)
    for batch in (1, 2):
        assert worst(optimized, original, images(batch, 3, 8, 12, seed=batch)) < TOLERANCE


@pytest.mark.parametrize("copied", COPIES)
def test_they_can_be_copied_and_pickled(copied):
    optimized = featx.optimize(pixels(), runtime="onednn", example=images(1, 3, 8, 12))
    twin = copied(copied(optimized))
    with torch.no_grad():
        assert_same(twin(images(1, 3, 8, 12)), optimized(images(1, 3, 8, 12)))


@pytest.mark.parametrize(
    ("batch", "side", "layout", "found"),
    [
        (1, 180, "auto", {"Product": 1, "ProductAdd": 2}),
        (2, 180, "auto", {"Product": 0, "ProductAdd": 1}),  # too much to activate
        (1, 180, "contiguous", {"Product": 0, "ProductAdd": 0}),
        (1, 520, "auto", {"Product": 0, "ProductAdd": 0}),  # too much to multiply
    ],
)
def test_there_are_products_where_they_are_faster(batch, side, layout, found):
    example = images(batch, 3, side, side)
    optimized = featx.optimize(pixels(), runtime="onednn", example=example, memory_format=layout)
    assert {kind: kinds(optimized)[kind] for kind in found} == found
    last = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    with torch.no_grad():
        assert all(map_.is_contiguous(memory_format=last) for map_ in optimized(example))


def test_what_is_no_product_is_none():
    weight, still = torch.zeros(4, 4, 1, 1), Window((0, 0), (1, 1), (1, 1), 1)
    relu = Activation("relu")
    assert is_product(weight, relu, still)
    assert not is_product(torch.zeros(4, 4, 1, 3), relu, still)
    assert not is_product(weight, relu, Window((0, 0), (2, 1), (1, 1), 1))
    assert not is_product(weight, relu, Window((0, 1), (1, 1), (1, 1), 1))
    assert not is_product(torch.zeros(4, 2, 1, 1), relu, Window((0, 0), (1, 1), (1, 1), 2))
    assert not is_product(weight.bfloat16(), relu, still)
    assert not is_product(weight, Activation("gelu", (), "tanh"), still)


def test_large_ones_are_left_to_the_kernel():
    weight = torch.zeros(16, 64, 1, 1)
    assert is_small(weight, Activation(), FEW // 1024)
    assert not is_small(weight, Activation(), FEW // 1024 + 1)
    assert is_small(torch.zeros(16, 4, 1, 1), Activation("relu"), FEW_RESULTS // 16)
    assert not is_small(torch.zeros(16, 4, 1, 1), Activation("relu"), FEW_RESULTS // 16 + 1)
