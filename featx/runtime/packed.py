"""Convolutions and linear layers on oneDNN's own kernels: weights packed once, what comes after done by the kernel."""

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn

mkldnn = torch.ops.mkldnn


@dataclass(frozen=True, slots=True)
class Activation:
    """What a kernel does to its results: oneDNN's name of it, its numbers, its variant."""

    name: str = "none"
    numbers: tuple[float, ...] = ()
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution moves over its input."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Packed(nn.Module):
    """A layer whose weights are in the order that the kernel reads them in, then an activation.

    PyTorch can neither copy nor save tensors in such an order, so the module does. None of them is a parameter.

    given: shape of an input. Others are computed as well, but packed for none, the weights of some layers would be put
        into another order in every call, which takes many times longer than to compute.
    """

    float32_bias = True  # whether the kernel takes one beside weights of less precision

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        act: Activation,
        given: tuple[int, ...],
        window: Window | None = None,
    ) -> None:
        super().__init__()
        self.act, self.given, self.window = act, given, window
        self._bias = bias if bias is None or self.float32_bias else bias.to(weight.dtype)
        self._packed = self.pack(weight)

    def pack(self, weight: Tensor) -> Tensor:
        """The weights in the kernel's order."""
        raise NotImplementedError

    def unpack(self) -> Tensor:
        """The weights in PyTorch's order, which can be packed again."""
        return self._packed.to_dense()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": self.unpack()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._packed = self.pack(state["_packed"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))  # nothing ever changes the tensors
        memo[id(self)] = twin
        return twin


class Convolving(Packed):
    """A layer that moves a window over its input."""

    def pack(self, weight: Tensor) -> Tensor:
        ordered = weight.contiguous(memory_format=torch.channels_last)
        return mkldnn._reorder_convolution_weight(ordered, *self._moves(), self.given)

    def _moves(self) -> tuple[Any, ...]:
        window = self.window
        assert window is not None
        return window.padding, window.stride, window.dilation, window.groups


class PackedConv(Convolving):
    """(N, in_chs, H, W) to (N, chs, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        act = self.act.name, self.act.numbers, self.act.variant
        return mkldnn._convolution_pointwise.default(x, self._packed, self._bias, *self._moves(), *act)


class PackedConvAdd(Convolving):
    """The same, with another map of the shape of its result added before the activation."""

    float32_bias = False

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return mkldnn._convolution_pointwise.binary(x, other, self._packed, self._bias, *self._moves(), *self._added())

    def _added(self) -> tuple[Any, ...]:
        act = self.act
        named = (None, (), "") if act.name == "none" else (act.name, act.numbers, act.variant)
        return "add", 1.0, *named


class PackedConvAddTo(PackedConvAdd):
    """The same, written over that other map, which nothing reads afterwards."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return mkldnn._convolution_pointwise_.binary(other, x, self._packed, self._bias, *self._moves(), *self._added())


class Multiplying(Packed):
    """A layer that multiplies its input with a matrix."""

    def pack(self, weight: Tensor) -> Tensor:
        return mkldnn._reorder_linear_weight(weight.contiguous(), prod(self.given[:-1]))


class PackedLinear(Multiplying):
    """(..., in_chs) to (..., chs)."""

    def forward(self, x: Tensor) -> Tensor:
        act = self.act
        return mkldnn._linear_pointwise.default(x, self._packed, self._bias, act.name, act.numbers, act.variant)


class PackedLinearAdd(Multiplying):
    """The same, with another tensor of the shape of its result added."""

    float32_bias = False

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return mkldnn._linear_pointwise.binary(x, other, self._packed, self._bias, "add")
