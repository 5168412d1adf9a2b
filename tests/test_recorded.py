"""Graphs recorded from forwards: right for every size and batch they are given out for, and none where they are not."""

import subprocess
import sys

import pytest
import torch
from conftest import SMALL, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import featx
from featx.runtime.capture import MapsOf
from featx.runtime.record import UnrecordedError
from featx.runtime.recorded import recorded

SHAPE = (2, 3, 64, 64)
# Families whose code computes paddings, patches or positions from the sizes of maps.
OF_ONE_SIZE = ("tf_", "mobilevit", "vit_")


class Net(nn.Module):
    """A convolution, and what a test does with its map."""

    def __init__(self, then):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.then = nn.Conv2d(3, 8, 3, 2, 1), then
        self.register_buffer("kept", torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.then(self, self.conv(x)),)


def graph_of(then):
    return recorded(Net(then), torch.randn(SHAPE), sizes=True)


def assert_alike(then, *shapes) -> None:
    """The graph and the network give the same, to the last digit."""
    net, found = Net(then), graph_of(then)
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(found[0](x)[0], net(x)[0])


OF_ANY_SIZE = {
    "views all cells": lambda net, x: x.reshape(8, -1, x.shape[0], 1),
    "batches in views": lambda net, x: x.view(x.shape[0] * 2, 4, *x.shape[2:]).relu_(),
    "slices up to another map's size": lambda net, x: F.interpolate(x, scale_factor=2.0)[
        ..., : x.shape[2], : x.shape[3]
    ],
    "slices longer than the maps seen": lambda net, x: x[:, :, :70],
    "interpolation to another map's size": lambda net, x: x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]),
    "pools to one cell": lambda net, x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "grids": lambda net, x: x + torch.arange(x.shape[3], dtype=x.dtype),
    "products": lambda net, x: x.flatten(2).transpose(1, 2) @ x.flatten(2),
    "decides on the number of channels": lambda net, x: x.relu() if x.shape[1] == 8 else x,
    "groups": lambda net, x: x.unflatten(1, (2, -1)).sum(1),
}


@pytest.mark.parametrize("then", [pytest.param(then, id=name) for name, then in OF_ANY_SIZE.items()])
def test_a_graph_of_any_size_is_right_for_sizes_it_has_not_seen(then):
    assert graph_of(then)[1]
    assert_alike(then, (2, 3, 64, 64), (1, 3, 64, 64), (7, 3, 161, 35), (3, 3, 33, 150))


OF_OWN_SIZE = {
    "decides on a size": lambda net, x: x.relu() if x.shape[2] > 20 else x,
    "decides on whether sizes are alike": lambda net, x: x.relu() if x.shape[2] == x.shape[3] else x,
    "decides on a count": lambda net, x: x.relu() if x.numel() > 1000 else x,
    "decides on an unpacked size": lambda net, x: (lambda n, c, h, w: x.relu() if h % 5 else x)(*x.shape),
    "computes with a size": lambda net, x: F.pad(x, (0, -x.shape[3] % 4)),
    "decides on a size behind the channels": lambda net, x: x.relu() if x.permute(0, 2, 3, 1).shape[1] > 20 else x,
    "asks by method": lambda net, x: x.relu() if x.size(-1) > 20 else x,
    "halves a side": lambda net, x: x[:, :, : x.shape[2] // 2],
    "splits a side": lambda net, x: x.chunk(2, dim=2)[0],
    "writes into a part": lambda net, x: x.clone().__setitem__((slice(None), slice(None), slice(0, 70)), 1.0) or x,
}


@pytest.mark.parametrize("then", [pytest.param(then, id=name) for name, then in OF_OWN_SIZE.items()])
def test_a_graph_whose_code_asks_for_sizes_is_for_its_own(then):
    assert not graph_of(then)[1]
    assert_alike(then, (2, 3, 64, 64), (1, 3, 64, 64), (5, 3, 64, 64))


def test_a_graph_of_maps_of_one_cell_is_for_its_own_size():
    """A side of one cell fits to any other: what is added here is as large as the map at this size alone."""
    net = Net(lambda net, x: net.conv2(x) + net.pool(x))
    net.conv2, net.pool = nn.Conv2d(8, 8, 2, 2), nn.AdaptiveAvgPool2d(1)
    found = recorded(net, torch.randn(2, 3, 4, 4), sizes=True)
    assert not found[1]


NOT_REPEATED = {
    "reads a value": lambda net, x: x * x.mean().item(),
    "decides on a value": lambda net, x: x if x.sum() > 0 else -x,
    "asks a shape for what tuples lack": lambda net, x: x * x.shape.numel(),
    "lists values": lambda net, x: x * x.mean((0, 1, 2)).tolist()[0],
    "goes through NumPy": lambda net, x: x + torch.from_numpy(x.detach().numpy()),
    "draws": lambda net, x: x + torch.rand(8, 1, 1),
    "drops": lambda net, x: F.dropout(x, training=True),
    "changes a buffer": lambda net, x: x + net.kept.add_(1),
    "takes a tensor from elsewhere": lambda net, x: x + ELSEWHERE,
    "decides on the number of images": lambda net, x: x.relu() if x.shape[0] == 7 else x,
}
ELSEWHERE = torch.ones(8, 1, 1)


@pytest.mark.parametrize("then", [pytest.param(then, id=name) for name, then in NOT_REPEATED.items()])
def test_there_is_no_graph_of_what_would_not_be_repeated(then):
    with pytest.raises(UnrecordedError):
        graph_of(then)


def test_a_size_the_model_does_not_take_leaves_the_graph_to_its_own():
    net = Net(lambda net, x: net.linear(x.flatten(1)))
    net.linear = nn.Linear(8 * 32 * 32, 4)
    found = recorded(net, torch.randn(SHAPE), sizes=True)
    assert not found[1]


@pytest.mark.parametrize("name", SMALL)
def test_the_graph_of_a_variant_computes_the_same(name):
    model = MapsOf(randomise(featx.create_model(name, features_only=True)))
    own = model.extractor._inner.fixed_size
    graph, any_size = recorded(model, torch.randn(2, 3, *(own or (96, 96))), sizes=own is None)
    assert any_size is not name.startswith(OF_ONE_SIZE)
    for shape in [(1, 3, 161, 97), (3, 3, 64, 160)] if any_size else [(1, 3, *(own or (96, 96)))]:
        x = torch.randn(shape)
        with torch.no_grad():
            for found, expected in zip(graph(x), model(x), strict=True):
                assert torch.equal(found, expected)


def test_onednn_gets_ready_without_pytorchs_compiler():
    code = "import featx, sys; m = featx.create_model('resnet18', features_only=True).eval(); "
    code += "featx.optimize(m, runtime='onednn'); assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
