"""The rules of meta kernels, compared with PyTorch's operations: shapes, dtypes, strides and errors."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from featx.tracing.meta_kernels import RULES, MetaKernels

MAP, TOKENS, CHS = (2, 8, 5, 7), (2, 6, 8), (8,)


class Reached(TorchDispatchMode):
    """Records the operations that reach this mode."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def last(x, *_):
    return x.transpose(1, 3)


OPERATIONS = {
    "batch norm": (partial(F.batch_norm, training=False), [MAP, CHS, CHS, CHS, CHS]),
    "batch norm in training": (partial(F.batch_norm, training=True), [MAP, CHS, CHS, CHS, CHS]),
    "batch norm of channels last": (
        lambda x, *tensors: F.batch_norm(x.contiguous(memory_format=torch.channels_last), *tensors),
        [MAP, CHS, CHS],
    ),
    "layer norm": (lambda x, weight, bias: F.layer_norm(x, CHS, weight, bias), [TOKENS, CHS, CHS]),
    "layer norm without weights": (lambda x: F.layer_norm(x, (6, 8)), [TOKENS]),
    "group norm": (lambda x, weight, bias: F.group_norm(x, 4, weight, bias), [MAP, CHS, CHS]),
    "linear": (F.linear, [TOKENS, (3, 8), (3,)]),
    "sum": (torch.add, [MAP, MAP]),
    "sum with one per channel": (torch.add, [MAP, (8, 1, 1)]),
    "difference": (torch.sub, [MAP, MAP]),
    "product": (torch.mul, [MAP, MAP]),
    "product with one per channel": (torch.mul, [MAP, (2, 8, 1, 1)]),
    "product of strided maps": (lambda x, y: last(x) * last(y), [MAP, MAP]),
    **{
        f.__name__: (f, [MAP])
        for f in (F.hardswish, F.hardsigmoid, F.hardtanh, F.relu6, torch.relu, F.gelu, F.silu, torch.sigmoid, F.elu)
    },
    "leaky_relu": (lambda x: F.leaky_relu(last(x)), [MAP]),
    "lower bound": (lambda x: torch.clamp_min(last(x), 0.5), [MAP]),
    **{
        f"{mode} upsampling of {name}": (
            lambda x, mode=mode, form=form: F.interpolate(x.contiguous(memory_format=form), (9, 4), mode=mode),
            [MAP],
        )
        for mode in ("bilinear", "bicubic")
        for name, form in {"maps": torch.contiguous_format, "channels last": torch.channels_last}.items()
    },
    "upsampling by a factor": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"), [MAP]),
    "attention": (lambda x: F.scaled_dot_product_attention(last(x), last(x), last(x)), [MAP]),
    "softmax of strided rows": (lambda x: torch.ops.aten._safe_softmax(last(x), -1), [MAP]),
    **{
        f"{f.__name__} in place": (lambda x, f=f: f(x.clone(), inplace=True), [MAP])
        for f in (F.hardswish, F.hardsigmoid, F.hardtanh)
    },
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_rule_returns_the_shape_dtype_and_strides_of_pytorch(operation):
    run, shapes = OPERATIONS[operation]
    with torch.no_grad(), Reached() as pytorch, MetaKernels(), Reached() as outside:
        output = run(*(torch.empty(shape, device="meta") for shape in shapes))
    expected = run(*(torch.ones(shape) for shape in shapes))
    assert {*outside.operations} & {*RULES}
    assert not {*pytorch.operations} & {*RULES}
    assert (output.shape, output.stride(), output.dtype) == (expected.shape, expected.stride(), expected.dtype)


@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (partial(F.batch_norm, training=False), [MAP, (7,), CHS]),
        (lambda x, weight: F.layer_norm(x, (8,), weight), [TOKENS, (7,)]),
        (lambda x: F.layer_norm(x, (7,)), [TOKENS]),
        (lambda x, weight: F.group_norm(x, 4, weight), [MAP, (7,)]),
        (F.linear, [TOKENS, (3, 7), (3,)]),
        (F.linear, [TOKENS, (3, 8), (4,)]),
        (torch.add, [MAP, (7, 1, 1)]),
        (lambda x: F.interpolate(x, (0, 4), mode="bicubic"), [MAP]),
    ],
)
def test_invalid_arguments_raise_the_errors_of_pytorch(run, shapes):
    with pytest.raises((RuntimeError, ValueError)), torch.no_grad(), MetaKernels():
        run(*(torch.empty(shape, device="meta") for shape in shapes))


def test_values_are_computed_on_other_devices():
    with torch.no_grad(), MetaKernels():
        assert torch.equal(torch.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
        assert F.hardswish(torch.tensor([9.0])).item() == 9


@pytest.mark.parametrize("other", [torch.ones(2, dtype=torch.float64), 2], ids=["another dtype", "a number"])
def test_pytorch_runs_operations_without_a_matching_rule(other):
    with torch.no_grad(), MetaKernels():
        output = torch.empty(2, device="meta") * (other.to("meta") if isinstance(other, torch.Tensor) else other)
    assert output.dtype == (torch.ones(2) * other).dtype


def test_integers_have_the_result_dtype_of_pytorch():
    with torch.no_grad(), MetaKernels():
        assert torch.sigmoid(torch.ones(2, dtype=torch.int64, device="meta")).dtype == torch.float32


def test_in_place_changes_increase_the_version_counter():
    x = torch.empty(2, 3, device="meta")
    with torch.no_grad(), MetaKernels():
        F.hardswish(x, inplace=True)
    assert x._version == 1


def test_rules_support_the_backward_pass():
    layer = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(2), nn.LayerNorm(4))
    layer = layer.to("meta")
    with MetaKernels():
        layer(torch.empty(2, 3, 2, 2, device="meta")).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_flop_counts_do_not_change():
    layer, x = nn.Linear(3, 4, device="meta"), torch.empty(5, 3, device="meta")
    with FlopCounterMode(display=False) as counter, MetaKernels():
        layer(x)
    assert counter.get_total_flops() == 2 * 5 * 3 * 4
