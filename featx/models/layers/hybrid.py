"""The stem of hybrid ViTs: a ResNet with group norms and weight standardization (https://arxiv.org/abs/1912.11370).

All padding is TensorFlow's SAME. The first block of a stage has a projection shortcut, and the stride in its 3x3
convolution.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ArgumentError
from .padding import SameConv2d

GROUPS = 32  # of all norms


class StandardizedConv2d(SameConv2d):
    """A convolution with weight standardization: kernels of mean 0, variance 1 (https://arxiv.org/abs/1903.10520)."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # batch norm of one sample with a channel per kernel
        flat = F.batch_norm(weight.flatten(1).unsqueeze(0), None, None, training=True, eps=1e-8)
        return super()._conv_forward(input, flat.view_as(weight), bias)


class GroupNormReLU(nn.GroupNorm):
    """GroupNorm with 32 groups, then ReLU: (N, chs, H, W) to the same shape."""

    def __init__(self, chs: int) -> None:
        super().__init__(GROUPS, chs)

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class SameMaxPool(nn.Module):
    """Max pooling of non-negative maps with SAME padding: (N, C, H, W) to (N, C, H / 2, W / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        below, right = (1 + x.shape[axis] % 2 for axis in (-2, -1))
        return F.max_pool2d(F.pad(x, (right // 2, 1, below // 2, 1)), 3, 2)


class Shortcut(nn.Module):
    """Projection shortcut: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    def __init__(self, in_chs: int, chs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = conv(in_chs, chs, 1)
        self.norm = nn.GroupNorm(GROUPS, chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x[..., :: self.stride, :: self.stride]))


class HybridBottleneck(nn.Module):
    """A residual bottleneck block: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    def __init__(self, in_chs: int, chs: int, stride: int) -> None:
        super().__init__()
        width = chs // 4
        self.downsample = Shortcut(in_chs, chs, stride) if in_chs != chs else nn.Identity()
        self.conv1 = conv(in_chs, width, 1)
        self.norm1 = GroupNormReLU(width)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = GroupNormReLU(width)
        self.conv3 = conv(width, chs, 1)
        self.norm3 = nn.GroupNorm(GROUPS, chs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


def conv(in_chs: int, chs: int, kernel: int, stride: int = 1) -> StandardizedConv2d:
    return StandardizedConv2d(in_chs, chs, kernel, stride, bias=False)


def hybrid_stem(in_chans: int, depths: tuple[int, ...], width: int = 64) -> tuple[nn.Module, int, int]:
    """A stem with stages of `depths` blocks, its output channels, and its total stride.

    width: channels of its first convolution, a multiple of the norms' 32 groups; ArgumentError otherwise.
    """
    if width < 1 or width % GROUPS:
        raise ArgumentError(f"stem_chs={width}: expected a multiple of {GROUPS}, the groups of the stem's norms")
    root = nn.Sequential(OrderedDict(conv=conv(in_chans, width, 7, 2), norm=GroupNormReLU(width), pool=SameMaxPool()))
    if not depths:
        return root, width, 4
    stages = nn.Sequential()
    chs = width
    for number, depth in enumerate(depths):
        wider, stride = 4 * width * 2**number, 2 if number else 1
        first = HybridBottleneck(chs, wider, stride)
        rest = (HybridBottleneck(wider, wider, 1) for _ in range(depth - 1))
        stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(first, *rest))))
        chs = wider
    stem = nn.Sequential(OrderedDict(stem=root, stages=stages))
    init_hybrid(stem)
    return stem, chs, 2 * 2 ** len(depths)


def init_hybrid(stem: nn.Module) -> None:
    """Initialize in place: Kaiming-normal convolutions (fan out), and residual branches that are zero."""
    for module in stem.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, HybridBottleneck):
            nn.init.zeros_(module.norm3.weight)
