"""Squeeze-and-excitation, https://arxiv.org/abs/1709.01507."""

from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate computed from the mean of all channels: (N, chs, H, W) to the same shape."""

    def __init__(self, chs: int, reduced_chs: int, gate: type[nn.Module] = nn.Hardsigmoid) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(chs, reduced_chs, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.conv_expand = nn.Conv2d(reduced_chs, chs, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * self.gate(scale)
