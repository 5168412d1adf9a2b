"""Tensors of another shape than the model's that still mean the same: changed, and each change put into words.

A change returns the new tensor and what was done, or None where it does not apply.
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

BACKGROUND = 1001  # classes of TensorFlow's ImageNet: the first of them is none of the thousand
LARGEST_PATCH = 64  # pixels of a side; resizing takes the fourth power of it in bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor goes: under which name, with which shape, in which model.

    grid: rows and columns of the positions that the tensors were trained with, where that is known.
    """

    name: str
    shape: tuple[int, ...]
    model: nn.Module
    grid: tuple[int, int] | None = None

    def fact(self, name: str) -> Any:
        """What the model says of itself, None if nothing."""
        return getattr(self.model, name, None)


def adapted(
    given: StateDict, wanted: Mapping[str, Tensor], model: nn.Module, grid: tuple[int, int] | None = None
) -> tuple[StateDict, dict[str, str]]:
    """The tensors with those changed that can be made to fit, and what was done to each of these; see Place."""
    state, done = dict(given), {}
    for name in given.keys() & wanted.keys():
        place, words = Place(name, tuple(wanted[name].shape), model, grid), []
        for change in (input_channels, patch_size, background):
            if tuple(state[name].shape) != place.shape and (changed := change(state[name], place)) is not None:
                state[name] = changed[0]
                words.append(changed[1])
        # grids of other sides may have as many positions
        if name == "pos_embed" and (changed := positions(state[name], place)) is not None:
            state[name] = changed[0]
            words.append(changed[1])
        if words:
            done[name] = ", ".join(words)
    return state, done


def input_channels(tensor: Tensor, place: Place) -> Change | None:
    """The first convolution (chs, 3, k, k) for images of other channels: summed for one, repeated and scaled for more.

    Scaled, so that images whose channels are all alike give the same result.
    """
    wanted = place.fact("in_chans")
    if wanted in (None, 3) or tensor.ndim != 4 or len(place.shape) != 4 or tensor.shape[1] != 3:
        return None
    if place.shape[1] != wanted:
        return None
    if wanted == 1:
        return tensor.sum(1, keepdim=True), "summed over the 3 input channels"
    repeated = tensor.repeat(1, -(-wanted // 3), 1, 1)[:, :wanted]
    return repeated * (3 / wanted), f"3 input channels repeated for {wanted} and scaled by 3/{wanted}"


def patch_size(tensor: Tensor, place: Place) -> Change | None:
    """The patch embedding (dim, chs, p, p) at another size of patches, by the pseudo-inverse of their resizing.

    It gives resized patches nearly what the original gives the patches (FlexiViT, https://arxiv.org/abs/2212.08013).
    """
    if not place.name.endswith("patch_embed.proj.weight") or tensor.ndim != 4 or len(place.shape) != 4:
        return None
    old, new = tuple(tensor.shape[2:]), place.shape[2:]
    if old == new or tuple(tensor.shape[:2]) != place.shape[:2] or not 0 < min(old) <= max(old) <= LARGEST_PATCH:
        return None
    basis = torch.eye(old[0] * old[1]).view(-1, 1, *old)
    resize = F.interpolate(basis, new, mode="bicubic", antialias=True).flatten(1)  # (old pixels, new pixels)
    weight = tensor.float().flatten(2) @ torch.linalg.pinv(resize).T
    return weight.unflatten(2, new).to(tensor.dtype), f"patches of {old[0]}x{old[1]} resized to {new[0]}x{new[1]}"


def positions(tensor: Tensor, place: Place) -> Change | None:
    """The position embedding (1, tokens, dim) on another grid, interpolated bicubically.

    Without a known grid, positions as many as the model's are its own, and others a square.
    """
    prefix, new = place.fact("num_positioned"), place.fact("grid")
    if prefix is None or tensor.ndim != 3 or tensor.shape[2] != place.shape[2]:
        return None
    count = tensor.shape[1] - prefix
    old = place.grid or (new if tensor.shape[1] == place.shape[1] else square(max(count, 0)))
    if old == new or not count or old[0] * old[1] != count:
        return None
    resampled = resample_positions(tensor, new, grid=old, prefix=prefix, antialias=place.fact("antialias"))
    return resampled, f"grid of {old[0]}x{old[1]} positions interpolated to {new[0]}x{new[1]}"


def background(tensor: Tensor, place: Place) -> Change | None:
    """The classifier without its background class, which comes before the thousand classes of ImageNet."""
    last = place.fact("last_linear")
    if last is None or not place.name.startswith(f"{last}.") or not tensor.ndim:
        return None
    if (len(tensor), place.shape[0]) != (BACKGROUND, BACKGROUND - 1):
        return None
    return tensor[1:], "without the background class"
