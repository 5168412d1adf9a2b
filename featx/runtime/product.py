"""Convolutions of single pixels as products of matrices, where there is little to compute."""

from typing import Any

import torch
from torch import Tensor

from .packed import Activation, Packed, Window

aten = torch.ops.aten
IN_PLACE: dict[str, Any] = {
    "relu": aten.relu_,
    "hardtanh": aten.hardtanh_,
    "swish": aten.silu_,
    "hardswish": aten.hardswish_,
    "sigmoid": aten.sigmoid_,
    "hardsigmoid": aten.hardsigmoid_,
    "tanh": aten.tanh_,
}
# Multiplications, and results to activate, up to which a product and an activation take less time than oneDNN's kernel,
# which needs 35 us before it starts where PyTorch's product needs 4 (one thread, Intel Xeon with AVX-512).
FEW, FEW_RESULTS = 2**24, 2**18


def is_product(weight: Tensor, act: Activation, window: Window) -> bool:
    """Whether a convolution, and the activation after it, can be computed as a product of matrices."""
    moves = window.padding, window.stride, window.groups
    single = tuple(weight.shape[2:]) == (1, 1) and moves == ((0, 0), (1, 1), 1)
    # of less precision, the kernel takes biases that are more precise
    return single and weight.dtype is torch.float32 and act.name in ("none", *IN_PLACE)


def is_small(weight: Tensor, act: Activation, pixels: int) -> bool:
    """Whether that is faster for so many pixels."""
    return pixels * weight.numel() <= FEW and (act.name == "none" or pixels * len(weight) <= FEW_RESULTS)


class OnPixels(Packed):
    """A layer that multiplies every pixel of its input with a matrix: (N, in_chs, H, W) to (N, chs, H, W)."""

    def pack(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).t().contiguous()

    def unpack(self) -> Tensor:
        return self._packed.t()

    def _multiplied(self, x: Tensor) -> Tensor:
        count, chs, height, width = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(-1, chs)
        y = pixels @ self._packed if self._bias is None else torch.addmm(self._bias, pixels, self._packed)
        return y.view(count, height, width, -1).permute(0, 3, 1, 2)

    def _activated(self, y: Tensor) -> Tensor:
        return y if self.act.name == "none" else IN_PLACE[self.act.name](y, *self.act.numbers)


class Product(OnPixels):
    """(N, in_chs, H, W) to (N, chs, H, W), in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        return self._activated(self._multiplied(x))


class ProductAdd(OnPixels):
    """The same, with another map of the shape of its result added before the activation."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self._activated(self._multiplied(x).add_(other))
