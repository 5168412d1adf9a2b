"""Programs of forwards: equal to the model for every accepted size and batch, and refused where they would not be."""

import subprocess
import sys

import pytest
import torch
from conftest import SMALL_VARIANTS, randomize
from support.onnx_programs import Then, run
from torch import nn
from torch.nn import functional as F

import featx
from featx.runtime.capture import MapsOf
from featx.tracing.forward_trace import UnrecordedError
from featx.tracing.program import program_of

SHAPE = (2, 3, 64, 64)
# Families whose code computes padding, patches or positions from the sizes of maps.
OF_ONE_SIZE = ("tf_", "mobilevit", "vit_")


def program(then):
    return program_of(Then(then), torch.randn(SHAPE), sizes=True)


def assert_alike(then, *shapes) -> None:
    """Check that the program and the network return equal values."""
    net, found = Then(then), program(then)
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(run(found, x)[0], net(x)[0])


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
def test_a_program_of_any_size_equals_the_model_at_unrecorded_sizes(then):
    assert program(then).any_size
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
    "keeps what it computed for a size": lambda net, x: x + kept_of(net, x.shape[2]),
}


def kept_of(net, side):
    """Ramps that are computed for the first images of a size, like some attention biases."""
    if not hasattr(net, "ramp") or len(net.ramp) != side:
        net.ramp = torch.linspace(0, 1, side)
    return net.ramp


@pytest.mark.parametrize("then", [pytest.param(then, id=name) for name, then in OF_OWN_SIZE.items()])
def test_a_model_that_depends_on_sizes_gets_a_program_of_one_size(then):
    assert not program(then).any_size
    assert_alike(then, (2, 3, 64, 64), (1, 3, 64, 64), (5, 3, 64, 64))


def test_a_model_with_maps_of_one_cell_gets_a_program_of_one_size():
    """A side of one cell broadcasts: the summands have equal sizes at this image size only."""
    net = Then(lambda net, x: net.conv2(x) + net.pool(x))
    net.conv2, net.pool = nn.Conv2d(8, 8, 2, 2), nn.AdaptiveAvgPool2d(1)
    found = program_of(net, torch.randn(2, 3, 4, 4), sizes=True)
    assert not found.any_size


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
    "writes into a part that is read": lambda net, x: x.__setitem__((slice(None), 0), 1.0) or x,
    "decides on the number of images": lambda net, x: x.relu() if x.shape[0] == 7 else x,
}
ELSEWHERE = torch.ones(8, 1, 1)


@pytest.mark.parametrize("then", [pytest.param(then, id=name) for name, then in NOT_REPEATED.items()])
def test_a_forward_that_cannot_be_repeated_has_no_program(then):
    with pytest.raises(UnrecordedError):
        program(then)


def test_a_model_that_refuses_other_sizes_gets_a_program_of_one_size():
    net = Then(lambda net, x: net.linear(x.flatten(1)))
    net.linear = nn.Linear(8 * 32 * 32, 4)
    found = program_of(net, torch.randn(SHAPE), sizes=True)
    assert not found.any_size


@pytest.mark.parametrize("name", SMALL_VARIANTS)
def test_the_program_of_a_variant_returns_equal_maps(name):
    model = MapsOf(randomize(featx.create_model(name, features_only=True)))
    own = model.extractor._inner.fixed_size
    found = program_of(model, torch.randn(2, 3, *(own or (96, 96))), sizes=own is None)
    assert found.any_size is not name.startswith(OF_ONE_SIZE)
    for shape in [(1, 3, 161, 97), (3, 3, 64, 160)] if found.any_size else [(1, 3, *(own or (96, 96)))]:
        x = torch.randn(shape)
        with torch.no_grad():
            for ours, expected in zip(run(found, x), model(x), strict=True):
                assert torch.equal(ours, expected)


def test_tensors_in_dictionaries_and_lists_belong_to_the_model():
    net = Then(lambda net, x: x * net.tables["first"] + net.shifts[0])
    net.tables, net.shifts = {"first": torch.rand(8, 1, 1)}, [torch.rand(8, 1, 1)]
    found = program_of(net, torch.randn(SHAPE), sizes=True)
    x = torch.randn(3, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(run(found, x)[0], net(x)[0])


def test_a_tensor_that_is_replaced_during_the_forward_is_ignored():
    """Another tensor may get the id of a tensor that has been freed."""

    def then(net, x):
        net.kept = None
        made = torch.zeros(8, 1, 1)
        made += 1
        net.kept = made
        return x + made

    found = program(then)
    assert kinds(found) == ["conv2d", "add"]


def test_tensors_of_numbers_are_constants_if_they_are_equal():
    assert_alike(lambda net, x: x * torch.tensor([1.0, 2.0] * 4)[:, None, None], (2, 3, 64, 64), (3, 3, 33, 150))
    assert not program(lambda net, x: x * torch.tensor(x.shape[2] * 1.0)).any_size


def kinds(found) -> list[str]:
    return [call.operation.overloadpacket.__name__ for call in found.calls]


def test_operations_on_weights_alone_are_computed_once():
    found = program(lambda net, x: x * (net.conv.weight.mean((1, 2, 3)) * 2 + torch.zeros(8).fill_(1.0))[:, None, None])
    assert kinds(found) == ["conv2d", "mul"]


def test_constants_may_be_modified_in_place():
    def then(net, x):
        mask = torch.zeros(8, 1, 1)
        mask[2:4] = 1.0
        return x * mask

    found = program(then)
    assert kinds(found) == ["conv2d", "mul"]
    assert_alike(then, SHAPE)


def test_unused_operations_are_left_out():
    assert kinds(program(lambda net, x: (x.exp(), x.relu())[1])) == ["conv2d", "relu"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtime_is_ready_without_pytorchs_compiler_and_exporter(runtime):
    pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    code = "import featx, sys; m = featx.create_model('resnet18', features_only=True).eval(); "
    code += f"featx.optimize(m, runtime={runtime!r}); "
    code += "assert not {'torch._dynamo', 'sympy', 'onnxscript', 'torch.onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
