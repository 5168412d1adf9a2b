"""What weights lose in a lower precision is made up for in the mean; biases lose nothing where kernels can add them."""

import pytest
import torch
from torch import nn

import featx
from featx.runtime.rounding import correct_rounding

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


class Offset(nn.Module):
    """Large biases with fractions, which a later layer takes away again: what is left depends on the fractions."""

    feature_info = ({"chs": 8, "reduction": 1, "name": "second"},)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        with torch.no_grad():
            self.first.weight.fill_(0.0)
            self.first.bias.copy_(torch.arange(8) + 0.1)
            self.second.weight.copy_(torch.eye(8)[:, :, None, None])
            self.second.bias.copy_(-self.first.bias.bfloat16())

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16")
def test_onednn_adds_biases_in_full_precision():
    model = Offset().eval()
    with torch.no_grad():
        model.second.bias.add_(0.001)  # which bfloat16 does not hold beside 7
        made = featx.optimize(
            featx.FeatureExtractWrapper(model), runtime="onednn", dtype=torch.bfloat16, example=torch.zeros(2, 3, 8, 8)
        )
        (found,) = made(torch.zeros(1, 3, 8, 8))
    assert torch.allclose(found.float(), torch.full_like(found, 0.001).float(), rtol=0.01)
