"""What weights lose in a lower precision is made up for in the mean; biases lose nothing where kernels can add them."""

import pytest
import torch
from torch import nn

from featx.runtime.passes.bias_correction import correct_rounding

SIDE = 24


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = {
        "convolution": nn.Conv2d(8, 16, 3),
        "in groups": nn.Conv2d(8, 16, 3, groups=4),
        "depthwise": nn.Conv2d(8, 8, 5, stride=2, groups=8),
        "linear": nn.Linear(8, 16),
    }
    return made[kind]


def given(kind: str) -> torch.Tensor:
    """Channels whose means are far from zero, and differ."""
    x = torch.rand(2, 8, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) + torch.arange(8.0)[:, None, None]
    return x if kind != "linear" else x.permute(0, 2, 3, 1)


def rounded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Its weights rounded, its bias not, so that only what weights lose is seen."""
    with torch.no_grad():
        weight = module.get_parameter("weight")
        weight.copy_(weight.to(dtype))
    return module


def mean_change(module: nn.Module, original: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
    """By channel, the mean of what `module` returns beside `original`."""
    with torch.no_grad():
        change = module(x) - original(x)
    return change.flatten(0, -2).mean(0) if kind == "linear" else change.mean((0, 2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["convolution", "in groups", "depthwise", "linear"])
def test_rounded_weights_change_no_mean(kind, dtype):
    x, original, corrected = given(kind), layer(kind), layer(kind)
    correct_rounding(corrected, x, dtype)
    assert torch.equal(corrected.get_parameter("weight"), original.get_parameter("weight"))
    before = mean_change(rounded(layer(kind), dtype), original, x, kind).abs()
    after = mean_change(rounded(corrected, dtype), original, x, kind).abs()
    assert after.max() < 0.1 * before.max()  # the rest is the border, where a convolution reads other pixels


def test_weights_that_are_computed_are_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    made = Standardised(8, 4, 1)
    before = made.get_parameter("bias").clone()
    correct_rounding(made, given("convolution"), torch.bfloat16)
    assert torch.equal(made.get_parameter("bias"), before)
