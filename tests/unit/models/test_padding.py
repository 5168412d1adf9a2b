"""TensorFlow's SAME padding, against its definition: sides rounded up, the odd cell at the right and bottom."""

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from conftest import images

from featx.models.layers.padding import SameAvgPool2d, SameConv2d, SameMaxPool2d, same_depthwise_conv

SIZES = [(1, 2), (4, 7), (8, 9), (5, 5)]
WINDOWS = [(3, 2), (3, 1), (2, 2), (4, 4), (5, 3)]


def padded(x, kernel, stride, value=0.0):
    margins = []
    for side in reversed(x.shape[2:]):
        missing = max((ceil(side / stride) - 1) * stride + kernel - side, 0)
        margins += [missing // 2, missing - missing // 2]
    return F.pad(x, margins, value=value)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_the_maximum_is_of_the_cells_that_are_there(size, kernel, stride):
    x = images(1, 2, *size)
    expected = F.max_pool2d(padded(x, kernel, stride, value=-torch.inf), kernel, stride)
    assert torch.equal(SameMaxPool2d(kernel, stride)(x), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_the_mean_is_of_the_cells_that_are_there(size, kernel, stride):
    x = images(1, 2, *size).double()
    sums, counts = (F.avg_pool2d(padded(y, kernel, stride), kernel, stride) for y in (x, torch.ones_like(x)))
    torch.testing.assert_close(SameAvgPool2d(kernel, stride)(x), sums / counts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "stride"), WINDOWS)
def test_a_convolution_sees_zeros_around_the_map(size, kernel, stride):
    x, conv = images(1, 2, *size), SameConv2d(2, 3, kernel, stride)
    expected = F.conv2d(padded(x, kernel, stride), conv.weight, conv.bias, stride)
    torch.testing.assert_close(conv(x), expected)


def test_depthwise_convolutions_alone_may_be_padded_so():
    assert isinstance(same_depthwise_conv(4, 4, 3, 2, 1, 4), SameConv2d)
    assert same_depthwise_conv(4, 4, 3, 2, 1, 1).padding == (1, 1)
