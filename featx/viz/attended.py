"""Attention as heats: which patches of the photograph the tokens of a block are, and whose row is shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt

from torch import Tensor

from ..attention import Attention
from ..errors import ArgumentError, ContractError, InputError
from ..explain import attention_rollout, patches_of
from .points import Point, cell_at

# A block may attend to one token for so many cells of its map along each side.
COARSEST = 8


@dataclass(frozen=True, slots=True)
class Patches:
    """The keys of a block: `prefix` tokens, then height * width patches in rows."""

    height: int
    width: int
    prefix: int

    def queried_in(self, map_: Tensor) -> bool:
        """Whether the queries of (B, heads, queries, keys) are those same tokens."""
        return map_.shape[-2] == self.prefix + self.height * self.width

    def query(self, map_: Tensor, point: Point | None) -> int | None:
        """Whose row is shown: the patch at the point's, else the class token's; None for the mean over the patches."""
        if point is None:
            return 0 if self.prefix or map_.shape[-2] == 1 else None
        if not self.queried_in(map_):
            raise ArgumentError("a point chooses whose attention is shown, but the queries here are no patches")
        row, column = cell_at(point, self.height, self.width)
        return self.prefix + row * self.width + column


def patches_in(seen: Attention, block: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> Patches:
    """How the keys of a block lie over one photograph.

    pairs: prefix tokens (1, tokens, chs) and map (1, chs, h, w) per level, from an extractor with `output="tokens"`.
    Raises ContractError for attention within windows, and for keys that are no grid as coarse as a map or coarser.
    """
    map_ = seen.maps[block]
    batch, keys = map_.shape[0], map_.shape[-1]
    if batch != seen.positions[block]:
        raise ContractError(
            f"{block} attends within {batch} windows or parts of the photograph, of which there is no one picture: "
            "choose another block"
        )
    prefixes = sorted({0, *(tokens.shape[1] for tokens, _ in pairs)}, reverse=True)
    for prefix, (_, level) in product(prefixes, pairs):
        for height, width in _grids(*level.shape[-2:]):
            if height * width == keys - prefix:
                return Patches(height, width, prefix)
    grids = ", ".join(f"{map_.shape[-2]}x{map_.shape[-1]}" for _, map_ in pairs)
    raise ContractError(f"{block} attends to {keys} tokens, which are no grid over the photograph (maps are {grids})")


def _grids(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The grid itself, then those of one key for several cells, rounded up and down."""
    for side in range(1, COARSEST + 1):
        yield -(-height // side), -(-width // side)
        yield height // side, width // side


def heads_of(x: Tensor, patches: Patches, point: Point | None = None) -> Tensor:
    """One row of a block's map or gradient, by head: (B, heads, queries, keys) to (heads, h, w).

    Where a block attends to each pixel of its patches by itself, that of the pixel at the point, or their mean; where
    its queries are no patches, their mean.
    """
    query = patches.query(x, point)
    if point is not None and len(x) > 1:
        x = x[_pixel(len(x), patches, point)][None]
    if query is None and x.shape[-2] != patches.height * patches.width:
        x, query = x.mean(-2, keepdim=True), 0
    return patches_of(x, (patches.height, patches.width), query).mean(0)


def _pixel(positions: int, patches: Patches, point: Point) -> int:
    """Which of a patch's pixels, counted in rows, is at the point."""
    side = isqrt(positions)
    row, column = cell_at(point, patches.height * side, patches.width * side)
    return row % side * side + column % side


def attention_heats(
    seen: Attention, pairs: Sequence[tuple[Tensor, Tensor]], point: Point | None = None
) -> dict[str, Tensor]:
    """What each block attends to, mean over heads, (h, w) by a caption; for one block also every head's."""
    heats: dict[str, Tensor] = {}
    for block, map_ in seen.maps.items():
        heads = heads_of(map_, patches_in(seen, block, pairs), point)
        heats[f"{block}\nmean of {_heads(len(heads))} · {_cells(heads)}"] = heads.mean(0)
        if len(seen.maps) == 1 and len(heads) > 1:
            heats |= {f"{block}\nhead {i} · {_cells(heads)}": head for i, head in enumerate(heads)}
    return heats


def rollout_heats(
    seen: Attention, pairs: Sequence[tuple[Tensor, Tensor]], point: Point | None = None
) -> dict[str, Tensor]:
    """Attention rollout through the blocks, (h, w) by a caption.

    Raises ContractError if the blocks do not attend among the same tokens.
    """
    first, last = next(iter(seen.maps)), next(reversed(seen.maps))
    patches = patches_in(seen, last, pairs)
    try:
        rolled = attention_rollout(seen.maps, (patches.height, patches.width), patches.query(seen.maps[last], point))
    except InputError as error:
        raise ContractError(f"rollout multiplies blocks with the same tokens: {error}") from error
    return {f"rollout through {len(seen.maps)} blocks, {first} to {last}\n{_cells(rolled)}": rolled.mean(0)}


def gradcam_heats(seen: Attention, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Attention that speaks for the target, map · relu(gradient), mean over heads, (h, w) by a caption per block."""
    heats: dict[str, Tensor] = {}
    for block, map_ in seen.maps.items():
        heads = heads_of(map_ * seen.gradients[block].relu(), patches_in(seen, block, pairs))
        heats[f"{block}\nattention · gradient, mean of {_heads(len(heads))} · {_cells(heads)}"] = heads.mean(0)
    return heats


def _heads(count: int) -> str:
    return f"{count} head" + "s" * (count > 1)


def _cells(heat: Tensor) -> str:
    return f"{heat.shape[-1]}×{heat.shape[-2]} cells"
