"""Channel attention (squeeze-and-excitation, ECA), and rounding of channel counts."""

from functools import partial
from math import log2

from torch import Tensor, nn


def round_chs(chs: float, divisor: int = 8, lowest: float = 0.9) -> int:
    """Round to a multiple of `divisor`: at least `divisor`, and at least the fraction `lowest` of `chs`."""
    rounded = max(divisor, int(chs + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < lowest * chs else rounded


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (https://arxiv.org/abs/1709.01507): (N, chs, H, W) to the same shape."""

    def __init__(
        self, chs: int, waist: int, gate: type[nn.Module] = nn.Sigmoid, act: type[nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(chs, waist, 1)
        self.act1 = act(inplace=True)
        self.conv_expand = nn.Conv2d(waist, chs, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)


class SEModule(nn.Module):
    """Squeeze-and-excitation with the parameter names of SE-ResNets, and an optional norm between its layers."""

    def __init__(self, chs: int, waist: int, norm: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(chs, waist, 1)
        self.bn = norm(waist)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(waist, chs, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.act(self.bn(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * self.gate(scale)


class EfficientChannelAttention(nn.Module):
    """Efficient channel attention: gates from a 1d convolution over channels (https://arxiv.org/abs/1910.03151)."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        kernel = int(abs(log2(chs) + 1) / 2)
        kernel = max(kernel + 1 - kernel % 2, 3)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()  # (N, 1, chs)
        return x * gates.transpose(1, 2).unsqueeze(-1)


def se_module(chs: int, ratio: float = 1 / 16) -> SEModule:
    """Squeeze-and-excitation with `ratio` of the channels inside, rounded to a multiple of 8."""
    return SEModule(chs, round_chs(chs * ratio, lowest=0.0))


wide_se_module = partial(se_module, ratio=0.25)
