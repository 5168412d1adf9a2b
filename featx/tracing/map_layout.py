"""Layouts of module outputs, inferred from their shapes at one or two image sizes, and their conversion to maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor, log2
from typing import Any, Literal, get_args

from torch import Tensor

from ..arguments import require_number
from ..errors import ArgumentError, ContractError, InputError

Layout = Literal["NCHW", "NHWC", "NLC"]
Size = tuple[int, int]

# Largest number of prefix tokens (class, distillation, registers) that is inferred from a single image size.
MOST_PREFIX_TOKENS = 8

# Axes of each layout: that of the channels, and those of rows and columns, which NLC has in one.
AXES = {"NCHW": (1, (2, 3)), "NHWC": (3, (1, 2)), "NLC": (2, (1,))}


@dataclass(frozen=True, slots=True)
class Tap:
    """The module that returns a map, and the layout of its output.

    Attributes:
        name: path of the module.
        key: index or key of the map in the tuple or dictionary that the module returns.
        layout: the axes of the tensor; "NLC" is a sequence of tokens, row by row. None infers it.
        prefix: number of tokens before those of the grid, such as a class token. None infers it.

    Raises:
        ArgumentError: the layout does not exist, or prefix tokens are given for a layout that is not a sequence.
    """

    name: str
    key: int | str | None = None
    layout: Layout | None = None
    prefix: int | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in get_args(Layout):
            raise ArgumentError(f"layout={self.layout!r} of {self.name!r}: choose one of {get_args(Layout)}")
        if self.prefix is not None:
            require_number(self.prefix, f"prefix of {self.name!r}", 0)
        if self.prefix is not None and (self.prefix < 0 or self.layout not in (None, "NLC")):
            raise ArgumentError(f"prefix={self.prefix} of {self.name!r}: expected 0 or more, and a sequence (NLC)")

    def value(self, output: Any) -> Tensor:
        """The tensor in the module's output. ContractError if there is none."""
        value = output if self.key is None else _entry(output, self.key)
        if not isinstance(value, Tensor):
            raise ContractError(f"module {self.name!r} returned {described(output)}: {self._advice(output)}")
        return value

    def _advice(self, output: Any) -> str:
        if isinstance(output, Tensor):
            return f"leave key={self.key!r} out"
        keys = output if isinstance(output, dict) else range(len(output)) if isinstance(output, tuple | list) else ()
        keys = [key for key in keys if isinstance(_entry(output, key), Tensor)]
        if not keys:
            return "tap a module inside it that returns a tensor"
        return f"choose one of its tensors with Tap({self.name!r}, key={keys[0]!r}); it has {keys}"


@dataclass(frozen=True, slots=True)
class MapLayout:
    """The layout of a tensor that contains a map, its channels, input pixels per cell, and number of prefix tokens."""

    layout: Layout
    chs: int
    reduction: int
    prefix: int = 0

    def split(self, value: Tensor, size: Size, name: str) -> tuple[Tensor, Tensor]:
        """Prefix tokens (N, prefix, chs) and map (N, chs, h, w) in the output of a module for images of `size`."""
        map_ = self.map(value, size, name)
        return value[:, : self.prefix] if self.layout == "NLC" else value.new_empty(value.shape[0], 0, self.chs), map_

    def map(self, value: Tensor, size: Size, name: str) -> Tensor:
        """The map (N, chs, h, w) in the output of the module `name` for images of `size` (height, width) in pixels.

        Raises:
            InputError: the number of tokens does not match the size.
        """
        if self.layout == "NCHW":
            return value
        if self.layout == "NHWC":
            return value.permute(0, 3, 1, 2)
        tokens = value[:, self.prefix :]
        for grid in product(*zip(*grids(size, self.reduction), strict=True)):
            if grid[0] * grid[1] == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, grid)
        raise InputError(
            f"module {name!r} returned {tokens.shape[1]} tokens for images of {size[0]}x{size[1]} pixels, which do not "
            f"form a grid of 1/{self.reduction}: choose sides that are multiples of {self.reduction}"
        )


def grids(size: Size, reduction: int) -> tuple[Size, Size]:
    """The grid of complete patches of an image, and the grid that includes incomplete ones."""
    height, width = size
    return (height // reduction, width // reduction), (-(-height // reduction), -(-width // reduction))


def map_layouts(tap: Tap, shapes: Sequence[tuple[int, ...]], images: Sequence[tuple[int, ...]]) -> list[MapLayout]:
    """The possible layouts of the tensor of `tap`.

    Args:
        tap: the module; its layout and prefix restrict the result.
        shapes: shapes of the tensor for each batch of images.
        images: shapes (N, C, H, W) of one or two batches of different sizes.
    """
    if any(shape[:1] != batch[:1] for shape, batch in zip(shapes, images, strict=True)):
        return []
    sizes = [(batch[2], batch[3]) for batch in images]
    layouts = [layout for layout, (_, sides) in AXES.items() if len(shapes[0]) == 2 + len(sides)]
    return [
        possible
        for layout in layouts
        if tap.layout in (None, layout)
        for possible in _layouts(tap, layout, shapes, sizes)
    ]


def _layouts(tap: Tap, layout: Any, shapes: Sequence[tuple[int, ...]], sizes: Sequence[Size]) -> Iterator[MapLayout]:
    axis, sides = AXES[layout]
    chs = {shape[axis] for shape in shapes}
    if len(chs) > 1:
        return
    if len(sides) == 1:
        yield from _token_layouts(tap, min(chs), [shape[1] for shape in shapes], sizes)
        return
    rows, columns = ([shape[side] for shape in shapes] for side in sides)
    if len(sizes) == 1 and tap.layout is None and {shapes[0][side] for side in sides} == {1}:
        return  # probably globally pooled, unless the tap states a layout
    reductions = {_reduction([h for h, _ in sizes], rows), _reduction([w for _, w in sizes], columns)}
    if len(reductions) == 1 and None not in reductions:
        yield MapLayout(layout, min(chs), reductions.pop() or 1)


def _reduction(pixels: Sequence[int], cells: Sequence[int]) -> int | None:
    """Pixels per cell along one side; None if the cells do not grow with the pixels."""
    if 0 in cells or (len(cells) == 2 and cells[1] <= cells[0]):
        return None
    if len(cells) == 1:
        return _reduction_at_one_size(pixels[0], cells[0])
    # unpadded borders cancel in the difference of two sizes
    span, count = pixels[1] - pixels[0], cells[1] - cells[0]
    reduction = round(span / count)
    return reduction if reduction and abs(span - count * reduction) <= reduction else None


def _reduction_at_one_size(pixels: int, cells: int) -> int | None:
    """Pixels per cell: a power of two if one matches, or else the rounded ratio; None if neither matches."""
    reduction = pixels / cells
    powers = [2**exponent for exponent in (floor(log2(reduction)), ceil(log2(reduction)))] if reduction >= 1 else []
    matching = [power for power in powers if cells in (pixels // power, -(-pixels // power))]
    nearest = (matching or [round(reduction)])[0]
    return nearest if nearest and abs(pixels - cells * nearest) <= nearest else None


def _token_layouts(tap: Tap, chs: int, lengths: Sequence[int], sizes: Sequence[Size]) -> Iterator[MapLayout]:
    """The layout with the fewest prefix tokens, among those whose number of prefix tokens is the same at all sizes."""
    candidates = []
    for reduction in range(1, min(sizes[0]) + 1):
        for grids_ in zip(*(grids(size, reduction) for size in sizes), strict=True):
            prefix = {length - h * w for length, (h, w) in zip(lengths, grids_, strict=True)}
            if len(prefix) == 1 and min(prefix) >= 0 and tap.prefix in (None, *prefix):
                candidates.append((min(prefix), reduction.bit_count() > 1, reduction, grids_[0]))
    if len(sizes) == 1 and tap.prefix is None:
        height, width = sizes[0]
        candidates = [
            (prefix, not_power_of_two, reduction, grid)
            for prefix, not_power_of_two, reduction, grid in candidates
            if prefix <= MOST_PREFIX_TOKENS and grid != (1, 1)
            if not not_power_of_two or (height, width) == (reduction * grid[0], reduction * grid[1])
        ]
    if candidates:
        prefix, _, reduction, _ = min(candidates)
        yield MapLayout("NLC", chs, reduction, prefix)


def _entry(output: Any, key: int | str) -> Any:
    if isinstance(output, dict):
        return output.get(key)
    if isinstance(output, tuple | list) and isinstance(key, int) and -len(output) <= key < len(output):
        return output[key]
    return None


def described(output: Any) -> str:
    """A description of a module's output for error messages."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    if output is None:
        return "None"
    kind = type(output).__name__
    if isinstance(output, dict):
        return f"a {kind} of {', '.join(f'{key}: {described(value)}' for key, value in output.items()) or 'nothing'}"
    if isinstance(output, tuple | list):
        return f"a {kind} of {', '.join(described(value) for value in output) or 'nothing'}"
    return f"a {kind}"
