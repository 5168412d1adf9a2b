"""What each head of a block attends to, on the photograph."""

import torch
from torch import Tensor

from ..attention import Attention, capture_attention
from ..attention.blocks import blocks_of
from ..errors import ArgumentError, InputError
from ..explain import patches_of
from ..features import Levels
from ..viz.points import Point, cell_at
from ..wrappers import FeatureExtractWrapper

Grid = tuple[int, int]
MOST_PREFIX = 32  # tokens before the patches: a class token, and registers


def blocks(extractor: FeatureExtractWrapper) -> list[str]:
    """Names of the blocks with attention; ContractError if there is none."""
    return [block.name for block in blocks_of(extractor)]


def attended(
    extractor: FeatureExtractWrapper, image: Tensor, block: str | None, point: Point | None
) -> tuple[Tensor, str]:
    """Attention of each head over the image, (heads, h, w), and the words for where it looks from.

    image: (1, 3, H, W). point: shares of width and height, whose patch looks; without one it is the class token, or
    the mean over all patches where there is none. Raises ContractError for a model without attention, ArgumentError for
    a block it has not, and InputError where the keys are no grid over the image, as in windows.
    """
    known = blocks(extractor)
    if block not in known:
        raise ArgumentError(f"choose one of the blocks with attention: {', '.join(known)}")
    with torch.inference_mode(), capture_attention(extractor, [block]) as seen:
        maps = list(extractor(image))
    grid = _grid(seen, block, _cells(extractor.feature_info, maps, block))
    positions = seen.positions[block]
    if positions > 1:
        return _of_pixel(seen.grid(block, grid)[0], grid, round(positions**0.5), point)
    return _of_token(seen.maps[block][0], grid, point)


def _cells(levels: Levels, maps: list[Tensor], block: str) -> Grid:
    """Size of the map that the block is part of, or puts out."""
    for level, map_ in zip(levels, maps, strict=True):
        if f"{block}.".startswith(f"{level.name}.") or level.name.startswith(f"{block}."):
            return map_.shape[2], map_.shape[3]
    raise InputError(f"{block} is in none of the model's levels {levels.names()}: its grid of patches is not known")


def _grid(seen: Attention, block: str, cells: Grid) -> Grid:
    """The grid of the block's keys: the map's cells, or MobileViT's patches of 2x2 of them, which may be padded."""
    map_, positions = seen.maps[block], seen.positions[block]
    keys = map_.shape[-1]
    patches = -(-cells[0] // 2), -(-cells[1] // 2)
    for grid, prefix in ((cells, MOST_PREFIX), (patches, 0)):
        if len(map_) == positions and 0 <= keys - grid[0] * grid[1] <= prefix:
            return grid
    raise InputError(
        f"{block} attends to {keys} keys in each of {len(map_) // positions} groups, which are no grid over the image "
        "(windows, or pooled keys): choose another block or model"
    )


def _of_pixel(map_: Tensor, grid: Grid, side: int, point: Point | None) -> tuple[Tensor, str]:
    """(heads, pixels, h, w), pixels in rows of a map `side` times as large as the grid, to (heads, h, w)."""
    if point is None:
        return map_.mean(1), "all pixels"
    return map_[:, _index(point, (grid[0] * side, grid[1] * side))], "the pixel clicked"


def _of_token(map_: Tensor, grid: Grid, point: Point | None) -> tuple[Tensor, str]:
    """(heads, queries, keys) to (heads, h, w)."""
    queries, keys = map_.shape[1:]
    prefix = keys - grid[0] * grid[1]
    if queries != keys:  # scores of keys that all pixels share
        return patches_of(map_.mean(1, keepdim=True), grid), "all pixels"
    if point is not None:
        return patches_of(map_, grid, prefix + _index(point, grid)), "the patch clicked"
    return (patches_of(map_, grid, 0), "the class token") if prefix else (patches_of(map_, grid, None), "all patches")


def _index(point: Point, grid: Grid) -> int:
    """The cell the point is in, counted in rows."""
    row, column = cell_at(point, *grid)
    return row * grid[1] + column
