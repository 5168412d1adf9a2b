"""Convert checkpoint tensors to the shapes of a model: input channels, patch size, position grid, background class.

Each conversion returns the new tensor and a description of the change, or None if it does not apply.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.layers.pos_embed import resample_positions, square
from .state_dict_keys import StateDict

Change = tuple[Tensor, str]

BACKGROUND = 1001  # classes of TensorFlow's ImageNet: the background class, then the 1000 classes
LARGEST_PATCH = 64  # pixels per side; resizing needs memory proportional to its fourth power


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """The model's tensor that a checkpoint tensor is loaded into: its name, its shape, and the model.

    grid: rows and columns of the position embedding in the checkpoint; None if unknown.
    """

    name: str
    shape: tuple[int, ...]
    model: nn.Module
    grid: tuple[int, int] | None = None

    def attribute(self, name: str) -> Any:
        """The model's attribute of that name, or None."""
        return getattr(self.model, name, None)


def adapt_tensors(
    tensors: StateDict, wanted: Mapping[str, Tensor], model: nn.Module, grid: tuple[int, int] | None = None
) -> tuple[StateDict, dict[str, str]]:
    """The tensors, converted to the model's shapes where possible, and a description of each conversion by name.

    Args:
        tensors: checkpoint tensors by the model's names.
        wanted: the model's tensors.
        model: the model, whose attributes say which conversions apply.
        grid: rows and columns of the position embedding in `tensors`; None if unknown.
    """
    state, changes = dict(tensors), {}
    for name in tensors.keys() & wanted.keys():
        target, descriptions = TargetTensor(name, tuple(wanted[name].shape), model, grid), []
        for change in (input_channels, patch_size, background):
            if tuple(state[name].shape) != target.shape and (changed := change(state[name], target)) is not None:
                state[name] = changed[0]
                descriptions.append(changed[1])
        if not target.shape and state[name].numel() == 1:
            state[name] = scalar(state[name], wanted[name])
        # grids of different sides can have the same number of positions
        if name == "pos_embed" and (changed := positions(state[name], target)) is not None:
            state[name] = changed[0]
            descriptions.append(changed[1])
        if descriptions:
            changes[name] = ", ".join(descriptions)
    return state, changes


def scalar(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A single number, such as a counter of a batch norm, with the shape () and with an integer type if one is wanted.

    Some programs write it with the shape (1,), or convert it to floating point with the weights. Fractions keep their
    type, with which loading then fails.
    """
    number = tensor.reshape(()) if tensor.ndim == 1 else tensor
    if number.ndim or number.is_meta or wanted.is_floating_point() or not number.is_floating_point():
        return number
    return number.to(wanted.dtype) if bool(number == number.round()) and bool(number.isfinite()) else number


def input_channels(tensor: Tensor, target: TargetTensor) -> Change | None:
    """Convert the first convolution (chs, 3, k, k) to `in_chans`: sum for one channel, repeat and scale for more.

    The scale keeps the output unchanged for images whose channels are equal.
    """
    wanted = target.attribute("in_chans")
    if wanted in (None, 3) or tensor.ndim != 4 or len(target.shape) != 4 or tensor.shape[1] != 3:
        return None
    if target.shape[1] != wanted:
        return None
    if wanted == 1:
        return tensor.sum(1, keepdim=True), "summed over the 3 input channels"
    repeated = tensor.repeat(1, -(-wanted // 3), 1, 1)[:, :wanted]
    return repeated * (3 / wanted), f"3 input channels repeated for {wanted} and scaled by 3/{wanted}"


def patch_size(tensor: Tensor, target: TargetTensor) -> Change | None:
    """Convert the patch embedding (dim, chs, p, p) to another patch size, by the pseudo-inverse of bicubic resizing.

    A resized patch gets nearly the embedding of the original patch (FlexiViT, https://arxiv.org/abs/2212.08013).
    """
    if not target.name.endswith("patch_embed.proj.weight") or tensor.ndim != 4 or len(target.shape) != 4:
        return None
    old, new = tuple(tensor.shape[2:]), target.shape[2:]
    if old == new or tuple(tensor.shape[:2]) != target.shape[:2] or not 0 < min(old) <= max(old) <= LARGEST_PATCH:
        return None
    basis = torch.eye(old[0] * old[1]).view(-1, 1, *old)
    resize = F.interpolate(basis, new, mode="bicubic", antialias=True).flatten(1)  # (old pixels, new pixels)
    weight = tensor.float().flatten(2) @ torch.linalg.pinv(resize).T
    return weight.unflatten(2, new).to(tensor.dtype), f"patches of {old[0]}x{old[1]} resized to {new[0]}x{new[1]}"


def positions(tensor: Tensor, target: TargetTensor) -> Change | None:
    """Interpolate the position embedding (1, tokens, dim) bicubically to the model's grid.

    If the checkpoint's grid is unknown, it is the model's grid if the number of positions is equal, else a square.
    """
    prefix, new = target.attribute("num_positioned"), target.attribute("grid")
    if prefix is None or tensor.ndim != 3 or tensor.shape[2] != target.shape[2]:
        return None
    count = tensor.shape[1] - prefix
    old = target.grid or (new if tensor.shape[1] == target.shape[1] else square(max(count, 0)))
    if old == new or not count or old[0] * old[1] != count:
        return None
    resampled = resample_positions(tensor, new, grid=old, prefix=prefix, antialias=target.attribute("antialias"))
    assumed = "" if target.grid else " (assumed to be square)"
    return resampled, f"grid of {old[0]}x{old[1]} positions{assumed} interpolated to {new[0]}x{new[1]}"


def background(tensor: Tensor, target: TargetTensor) -> Change | None:
    """Remove the background class, which precedes the 1000 classes of ImageNet, from the classifier."""
    last = target.attribute("last_linear")
    if last is None or not target.name.startswith(f"{last}.") or not tensor.ndim:
        return None
    if (len(tensor), target.shape[0]) != (BACKGROUND, BACKGROUND - 1):
        return None
    return tensor[1:], "without the background class"
