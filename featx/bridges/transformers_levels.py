"""What the maps of a model of transformers are, measured on tensors without values: the package does not say."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from ..errors import ContractError, InputError

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a tensor holds a map.

    axis: of the channels: 1 in (N, C, h, w), 3 in (N, h, w, C), 2 in (N, prefix + h * w, C).
    """

    chs: int
    reduction: int
    axis: int
    prefix: int = 0


def shape_of(seen: Sequence[tuple[Size, Sequence[int]]], patch: int | None) -> Shape:
    """The shape that explains what was `seen`: for each image size (height, width), the shape of one tensor.

    Where only one size was seen, `patch` (pixels) decides what that leaves open. ContractError if none explains it.
    """
    ranks = {len(shape) for _, shape in seen}
    if ranks == {4}:
        return _map_shape(seen)
    if ranks == {3}:
        return _token_shape(seen, patch)
    raise ContractError(f"tensors of shape {tuple(seen[0][1])} hold no map: expected (N, C, h, w) or (N, tokens, C)")


def _map_shape(seen: Sequence[tuple[Size, Sequence[int]]]) -> Shape:
    for axis in (1, 3):
        chs = {shape[axis] for _, shape in seen}
        cells = [(size, tuple(side for i, side in enumerate(shape) if i not in (0, axis))) for size, shape in seen]
        if len(chs) == 1 and (reduction := reduction_of(cells)):
            return Shape(chs.pop(), reduction, axis)
    raise ContractError(f"no reduction explains maps of {[tuple(shape) for _, shape in seen]}: cells must be square")


def _token_shape(seen: Sequence[tuple[Size, Sequence[int]]], patch: int | None) -> Shape:
    counts = [(size, shape[1]) for size, shape in seen]
    for prefix in range(counts[0][1]):
        for reduction in _reductions(counts[0][0], counts[0][1] - prefix, patch):
            if all(grid_of(size, reduction, count - prefix) for size, count in counts):
                return Shape(seen[0][1][2], reduction, 2, prefix)
    raise ContractError(f"no grid explains {[count for _, count in counts]} tokens of images of {[s for s, _ in seen]}")


def _reductions(size: Size, cells: int, patch: int | None) -> list[int]:
    """Reductions that leave so many cells of an image, the likeliest first."""
    about = isqrt(size[0] * size[1] // cells) or 1
    around = range(max(1, about - about // 4 - 1), about + about // 4 + 2)
    fitting = [r for r in around if grid_of(size, r, cells)]
    return sorted(fitting, key=lambda r: (r != patch, r & (r - 1) != 0, abs(r - about)))


def reduction_of(seen: Sequence[tuple[Size, Sequence[int]]]) -> int | None:
    """Input pixels per cell, if one number explains all maps: a power of two if one does."""
    sides = [pair for size, cells in seen for pair in zip(size, cells, strict=True)]
    side, cells = max(sides)
    fitting = [r for r in range(1, side + 1) if all(c in (s // r, -(-s // r)) for s, c in sides)]
    return min(fitting, key=lambda r: (r & (r - 1) != 0, side % r != 0, abs(r - side / cells)), default=None)


def grid_of(size: Size, reduction: int, cells: int) -> Size | None:
    """Height and width of so many cells over an image; None if they do not cover it."""
    heights, widths = ((-(-side // reduction), side // reduction) for side in size)
    grids = [(height, width) for height in heights for width in widths if height * width == cells]
    return grids[0] if grids else None


def as_map(tensor: Tensor, shape: Shape, images: Tensor) -> Tensor:
    """(N, C, h, w) of the map that the tensor holds."""
    if shape.axis == 1:
        return tensor
    if shape.axis == 3:
        return tensor.permute(0, 3, 1, 2)
    size = (images.shape[2], images.shape[3])
    grid = grid_of(size, shape.reduction, tensor.shape[1] - shape.prefix)
    if grid is None:
        raise InputError(
            f"{tensor.shape[1]} tokens, {shape.prefix} of them prefix tokens, are no grid over {size} pixels at "
            f"1/{shape.reduction}: use sides that are multiples of {shape.reduction}"
        )
    return tensor[:, shape.prefix :].transpose(1, 2).unflatten(2, grid)
