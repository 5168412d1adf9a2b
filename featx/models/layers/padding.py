"""Convolutions and pools padded so that a side of n cells becomes ceil(n / stride): evenly, or as TensorFlow does.

Both pad the same where the stride is 1. TensorFlow's SAME pads a strided window by no more than it needs, and by the
odd cell at the right and bottom; how much it needs depends on the size of the map. A pool takes no notice of padding.
"""

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

torch.fx.wrap("missing_cells")


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: (N, in_chs, H, W) to (N, chs, H / stride, W / stride) rounded up."""

    def forward(self, input: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._margins(input.shape[axis], axis) for axis in (-2, -1))
        return super().forward(F.pad(input, (left, right, top, bottom)))

    def _margins(self, side: int, axis: int) -> tuple[int, int]:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        missing = missing_cells(side, reach, self.stride[axis])
        return missing // 2, missing - missing // 2


class SameMaxPool2d(nn.Module):
    """(N, C, H, W) to (N, C, H / stride, W / stride) rounded up."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        before = [missing_cells(x.shape[axis], self.kernel, self.stride) // 2 for axis in (2, 3)]
        # ceil_mode lets the last window reach as far over the edge as it needs to
        return F.max_pool2d(x, self.kernel, self.stride, before, ceil_mode=True)


class SameAvgPool2d(nn.Module):
    """(N, C, H, W) to (N, C, H / stride, W / stride) rounded up."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        before = [missing_cells(x.shape[axis], self.kernel, self.stride) // 2 for axis in (2, 3)]
        return F.avg_pool2d(x, self.kernel, self.stride, before, ceil_mode=True, count_include_pad=False)


def missing_cells(side: int, reach: int, stride: int) -> int:
    """Padding of a side in cells for windows of a given size, one per stride."""
    return max(reach - stride + -side % stride, 0)


def even_conv(in_chs: int, chs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded equally on all sides; `kernel` is odd."""
    return nn.Conv2d(in_chs, chs, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=False)


def same_conv(in_chs: int, chs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded as TensorFlow does; `kernel` is odd."""
    if stride == 1:
        return even_conv(in_chs, chs, kernel, stride, dilation, groups)
    return SameConv2d(in_chs, chs, kernel, stride, 0, dilation, groups, bias=False)


def same_depthwise_conv(
    in_chs: int, chs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, padded as TensorFlow does if it has groups, else equally; `kernel` is odd."""
    conv = same_conv if groups > 1 else even_conv
    return conv(in_chs, chs, kernel, stride, dilation, groups)
