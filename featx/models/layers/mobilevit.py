"""Inverted residuals, patch conversion, levels and initialization of MobileViT and MobileViTv2."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...features import FeatureInfo
from .attention import round_chs
from .conv_norm import ConvNorm, init_by_fan_out, narrow_normal
from .drop_path import drop_path
from .steps import Step


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection: (N, in_chs, H, W) to (N, chs, H / stride, W / stride)."""

    def __init__(
        self, in_chs: int, chs: int, expand: float, step: Step, act: type[nn.Module], drop: float = 0.0
    ) -> None:
        super().__init__()
        width = round_chs(round(in_chs * expand))
        self.conv1_1x1 = ConvNorm(in_chs, width, act=act)
        self.conv2_kxk = ConvNorm(width, width, 3, step, width, act)
        self.conv3_1x1 = ConvNorm(width, chs)
        self.has_shortcut = step.stride == 1 and in_chs == chs
        self.drop_path = drop_path(drop) if self.has_shortcut else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x))))
        return x + y if self.has_shortcut else y


def whole_patches(side: int, patch: int) -> int:
    """The side rounded up to a multiple of the patch side."""
    return (side + patch - 1) // patch * patch  # ONNX divides negative numbers otherwise than Python


def resized(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear interpolation to a size; a map of that size is returned itself."""
    # a symbolic side of torch.export or a tracer is not an int; comparing it would specialize the graph
    if all(isinstance(side, int) for side in (*x.shape[-2:], *size)) and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def enlarged(x: Tensor, patch: int, *, align_corners: bool = False) -> Tensor:
    """Bilinear interpolation to whole patches."""
    size = whole_patches(x.shape[-2], patch), whole_patches(x.shape[-1], patch)
    return resized(x, size, align_corners=align_corners)


def to_tokens(x: Tensor, patch: int) -> Tensor:
    """Group pixels by their position in the patch: (N, C, H, W) to (N, patch * patch, cells, C)."""
    n, chs, height, width = x.shape
    x = x.reshape(n, chs, height // patch, patch, width // patch, patch).permute(0, 3, 5, 2, 4, 1)
    return x.reshape(n, patch * patch, (height // patch) * (width // patch), chs)


def from_tokens(x: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Inverse of `to_tokens`: (N, patch * patch, cells, C) to (N, C, height, width), channels last in memory."""
    n, chs = x.shape[0], x.shape[3]
    x = x.reshape(n, patch, patch, height // patch, width // patch, chs).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, height, width, chs).permute(0, 3, 1, 2)


def from_enlarged(x: Tensor, patch: int, like: Tensor) -> Tensor:
    """The tokens of an `enlarged` map as a map of the original size and memory format."""
    height, width = like.shape[-2:]
    x = from_tokens(x, patch, whole_patches(height, patch), whole_patches(width, patch))
    return resized(x if is_channels_last(like) else x.contiguous(), (height, width))


def to_patches(x: Tensor, patch: int) -> Tensor:
    """The same with channels before pixels, (N, C, H, W) to (N, C, patch * patch, cells), in the memory format of x."""
    if is_channels_last(x):
        return to_tokens(x, patch).permute(0, 3, 1, 2)
    n, chs, height, width = x.shape
    x = x.reshape(n, chs, height // patch, patch, width // patch, patch).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, chs, patch * patch, (height // patch) * (width // patch))


def from_patches(x: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The way back: (N, C, patch * patch, cells) to (N, C, height, width), in the memory format of x."""
    if is_channels_last(x):
        return from_tokens(x.permute(0, 2, 3, 1), patch, height, width)
    n, chs = x.shape[:2]
    x = x.reshape(n, chs, patch, patch, height // patch, width // patch).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, chs, height, width)


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def stage_levels(
    stem_chs: int, strides: Sequence[int], chs: Sequence[int], reductions: Sequence[int]
) -> list[FeatureInfo]:
    """Levels: the last stage before each stride. The `stem` of stride 2 is a level if the first stage has a stride.

    Args:
        strides: per stage, before dilation.
        reductions: per stage, after any dilation.
    """
    info = [FeatureInfo(stem_chs, 2, "stem")] if strides[0] > 1 else []
    for number, (width, reduction) in enumerate(zip(chs, reductions, strict=True)):
        if number + 1 == len(strides) or strides[number + 1] > 1:
            info.append(FeatureInfo(width, reduction, f"stages.{number}"))
    return info


def init_weights(model: nn.Module) -> None:
    """Initialize in place: normal convolutions (fan out per group) and linear layers, zero residual branches."""
    init_by_fan_out(model, narrow_normal)
    for module in model.modules():
        if isinstance(module, InvertedResidual) and module.has_shortcut:
            nn.init.zeros_(module.conv3_1x1.bn.weight)
