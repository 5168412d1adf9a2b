"""Checks of the images that a model is called with, and of the image size that it is built for."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .errors import ArgumentError, InputError

Sides = int | tuple[int, int]
LARGEST_SIDE = 65_535  # pixels: the limit of JPEG


def image_sides(image_size: Sides, argument: str = "image_size") -> tuple[int, int]:
    """(height, width) from a pair or the side of a square. ArgumentError for other values."""
    both = tuple(image_size) if isinstance(image_size, Iterable) else (image_size, image_size)
    if len(both) != 2 or not all(isinstance(side, int) and side is not True and side > 0 for side in both):
        raise ArgumentError(f"{argument}={image_size!r}: expected (height, width) or one side, in pixels")
    if max(both) > LARGEST_SIDE:
        raise ArgumentError(f"{argument}={image_size!r}: expected sides of at most {LARGEST_SIDE} pixels")
    return both


def dtypes_of(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The dtype of the model's first floating-point parameter, which its images must have; empty without one.

    Only plain parameters count: a sharded or quantized parameter may be computed in another dtype.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and type(parameter) in (nn.Parameter, Tensor):
            return (parameter.dtype,)
    return ()


def check_images(x: Tensor, in_chans: int | None, smallest: int = 1, dtypes: tuple[torch.dtype, ...] = ()) -> None:
    """InputError unless `x` is (N, in_chans, H, W) with sides of at least `smallest` pixels.

    Args:
        x: the images.
        in_chans: number of channels; None for any.
        smallest: shortest side in pixels.
        dtypes: accepted dtypes, the preferred one first; empty for any. Under autocast, dtypes that autocast converts
            are accepted, too.
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
    """InputError for images of another dtype than the model's, unless they are quantized or autocast converts them."""
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if x.is_quantized or (autocast and x.is_floating_point() and x.dtype != torch.float64):
        return
    hint = f"convert them with images.to({dtype})"
    if x.dtype == torch.uint8:
        scaled = "images.float() / 255" if dtype == torch.float32 else f"(images.float() / 255).to({dtype})"
        hint = f"scale them with {scaled}, and normalize them as the weights expect"
    if x.is_complex():
        hint = f"take their real part with images.real.to({dtype})"
    raise InputError(f"expected images of {dtype}, got {x.dtype}: {hint}; see featx.transform")


def check_size(x: Tensor, fixed_size: tuple[int, int] | None) -> None:
    """InputError unless the images have the model's fixed (height, width), if it has one."""
    if fixed_size is not None and (x.shape[2], x.shape[3]) != fixed_size:
        height, width = fixed_size
        raise InputError(f"expected images of {height}x{width} pixels, got {x.shape[2]}x{x.shape[3]}")
