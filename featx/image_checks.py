"""Checks of the images that a model is called with, and of the size that it is built for."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .errors import ArgumentError, InputError

Sides = int | tuple[int, int]
LARGEST_SIDE = 65_535  # pixels: what a JPEG can have


def image_sides(image_size: Sides, argument: str = "image_size") -> tuple[int, int]:
    """(height, width) of images; ArgumentError if `image_size` is neither that nor the side of a square."""
    both = tuple(image_size) if isinstance(image_size, Iterable) else (image_size, image_size)
    if len(both) != 2 or not all(isinstance(side, int) and side is not True and side > 0 for side in both):
        raise ArgumentError(f"{argument}={image_size!r}: expected (height, width) or one side, in pixels")
    if max(both) > LARGEST_SIDE:
        raise ArgumentError(f"{argument}={image_size!r}: expected sides of at most {LARGEST_SIDE} pixels")
    return both


def dtypes_of(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The dtype of the model's first floating parameter, which its images must have; empty if it has none.

    Only ordinary parameters count: the dtype of a sharded or quantised one is not always what it is computed in.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and type(parameter) in (nn.Parameter, Tensor):
            return (parameter.dtype,)
    return ()


def check_images(x: Tensor, in_chans: int | None, smallest: int = 1, dtypes: tuple[torch.dtype, ...] = ()) -> None:
    """Raise InputError unless `x` is (N, in_chans, H, W) with sides of at least `smallest` pixels.

    dtypes: those it may have, the best first; under autocast, others that autocast converts; any if there are none.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"expected a tensor (N, C, H, W), got {type(x).__name__}: see featx.transform for images")
    shape = tuple(x.shape)
    if x.ndim != 4:
        hint = "add the batch axis with x.unsqueeze(0)" if x.ndim == 3 else "stack images of one size"
        raise InputError(f"expected images (N, C, H, W), got shape {shape}: {hint}")
    if in_chans is not None and shape[1] != in_chans:
        channels_last = shape[3] == in_chans
        hint = "use x.permute(0, 3, 1, 2)" if channels_last else f"or build the model with in_chans={shape[1]}"
        raise InputError(f"expected {in_chans} channels on axis 1, got shape {shape}: {hint}")
    if min(shape[2:]) < smallest:
        raise InputError(
            f"images of {shape[2]}x{shape[3]} pixels are smaller than one cell of the deepest map ({smallest} pixels): "
            "enlarge them, or ask for shallower levels with out_indices"
        )
    if dtypes and x.dtype not in dtypes:
        _check_conversion(x, dtypes[0])


def _check_conversion(x: Tensor, dtype: torch.dtype) -> None:
    """Raise InputError for images of another dtype than the model's, unless autocast or a quantised model has them."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if x.is_quantized or (autocast and x.is_floating_point() and x.dtype != torch.float64):
        return
    hint = f"convert them with images.to({dtype})"
    if x.dtype == torch.uint8:
        scaled = "images.float() / 255" if dtype == torch.float32 else f"(images.float() / 255).to({dtype})"
        hint = f"scale them with {scaled}, and normalise them as the weights expect"
    if x.is_complex():
        hint = f"take their real part with images.real.to({dtype})"
    raise InputError(f"expected images of {dtype}, got {x.dtype}: {hint}; see featx.transform")


def check_size(x: Tensor, fixed_size: tuple[int, int] | None) -> None:
    """Raise InputError unless the images have the only (height, width) that the model takes, if there is only one."""
    if fixed_size is not None and (x.shape[2], x.shape[3]) != fixed_size:
        height, width = fixed_size
        raise InputError(f"expected images of {height}x{width} pixels, got {x.shape[2]}x{x.shape[3]}")
