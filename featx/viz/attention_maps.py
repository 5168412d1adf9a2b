"""Heatmaps of attention over a photograph, and the patch grid that a block's keys form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt

from torch import Tensor

from ..attention import Attention
from ..errors import ArgumentError, ContractError, InputError
from ..explain import attention_rollout, patches_of
from .cell_similarity import Point, cell_at

# The largest number of map cells, along each side, that one key of a block may stand for.
COARSEST = 8


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """The layout of a block's keys: `prefix` tokens, then height * width patches in row-major order."""

    height: int
    width: int
    prefix: int

    def queried_in(self, map_: Tensor) -> bool:
        """Whether the queries of a map (B, heads, queries, keys) are the same tokens as its keys."""
        return map_.shape[-2] == self.prefix + self.height * self.width

    def query(self, map_: Tensor, point: Point | None) -> int | None:
        """Index of the query whose row is shown: the patch at `point`, or the class token without a point.

        None stands for the mean over the patches, where there is no class token.
        """
        if point is None:
            return 0 if self.prefix or map_.shape[-2] == 1 else None
        if not self.queried_in(map_):
            raise ArgumentError("a point chooses whose attention is shown, but the queries here are not patches")
        row, column = cell_at(point, self.height, self.width)
        return self.prefix + row * self.width + column


def patches_in(captured: Attention, block: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> PatchGrid:
    """The patch grid that the keys of a block form over one photograph.

    Args:
        captured: the captured attention.
        block: the name of one of its blocks.
        pairs: prefix tokens (1, tokens, chs) and map (1, chs, h, w) per level, from an extractor with
            `output="tokens"`.

    Raises:
        ContractError: the block attends within windows, or its keys do not form a grid at least as coarse as a map.
    """
    map_ = captured.maps[block]
    batch, keys = map_.shape[0], map_.shape[-1]
    if batch != captured.positions[block]:
        raise ContractError(
            f"{block} attends within {batch} windows or parts of the photograph, which do not form one image: "
            "choose another block"
        )
    prefixes = sorted({0, *(tokens.shape[1] for tokens, _ in pairs)}, reverse=True)
    for prefix, (_, level) in product(prefixes, pairs):
        for height, width in _grids(*level.shape[-2:]):
            if height * width == keys - prefix:
                return PatchGrid(height, width, prefix)
    grids = ", ".join(f"{map_.shape[-2]}x{map_.shape[-1]}" for _, map_ in pairs)
    raise ContractError(
        f"{block} attends to {keys} tokens, which do not form a grid over the photograph (maps are {grids})"
    )


def _grids(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The grid itself, then grids in which one key covers several cells, rounded up and down."""
    for side in range(1, COARSEST + 1):
        yield -(-height // side), -(-width // side)
        yield height // side, width // side


def heads_of(x: Tensor, patches: PatchGrid, point: Point | None = None) -> Tensor:
    """One query's row of a block's map or gradient, per head: (B, heads, queries, keys) to (heads, h, w).

    A block that attends to each pixel of its patches separately gives the row of the pixel at `point`, or the mean over
    the pixels. A block whose queries are not patches gives the mean over its queries.
    """
    query = patches.query(x, point)
    if point is not None and len(x) > 1:
        x = x[_pixel(len(x), patches, point)][None]
    if query is None and x.shape[-2] != patches.height * patches.width:
        x, query = x.mean(-2, keepdim=True), 0
    return patches_of(x, (patches.height, patches.width), query).mean(0)


def _pixel(positions: int, patches: PatchGrid, point: Point) -> int:
    """Row-major index, within its patch, of the pixel at the point."""
    side = isqrt(positions)
    row, column = cell_at(point, patches.height * side, patches.width * side)
    return row % side * side + column % side


def attention_heats(
    captured: Attention, pairs: Sequence[tuple[Tensor, Tensor]], point: Point | None = None
) -> dict[str, Tensor]:
    """Heatmaps (h, w) by caption: each block's attention, averaged over heads; for a single block also each head."""
    heats: dict[str, Tensor] = {}
    for block, map_ in captured.maps.items():
        heads = heads_of(map_, patches_in(captured, block, pairs), point)
        heats[f"{block}\nmean of {_heads(len(heads))} · {_cells(heads)}"] = heads.mean(0)
        if len(captured.maps) == 1 and len(heads) > 1:
            heats |= {f"{block}\nhead {i} · {_cells(heads)}": head for i, head in enumerate(heads)}
    return heats


def rollout_heats(
    captured: Attention, pairs: Sequence[tuple[Tensor, Tensor]], point: Point | None = None
) -> dict[str, Tensor]:
    """The heatmap (h, w) of attention rollout through the blocks, by its caption.

    Raises:
        ContractError: the blocks do not attend among the same tokens.
    """
    first, last = next(iter(captured.maps)), next(reversed(captured.maps))
    patches = patches_in(captured, last, pairs)
    try:
        rolled = attention_rollout(
            captured.maps, (patches.height, patches.width), patches.query(captured.maps[last], point)
        )
    except InputError as error:
        raise ContractError(f"rollout multiplies blocks with the same tokens: {error}") from error
    return {f"rollout through {len(captured.maps)} blocks, {first} to {last}\n{_cells(rolled)}": rolled.mean(0)}


def gradcam_heats(captured: Attention, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Heatmaps (h, w) by caption, one per block: attention · relu(gradient), averaged over heads."""
    heats: dict[str, Tensor] = {}
    for block, map_ in captured.maps.items():
        heads = heads_of(map_ * captured.gradients[block].relu(), patches_in(captured, block, pairs))
        heats[f"{block}\nattention · gradient, mean of {_heads(len(heads))} · {_cells(heads)}"] = heads.mean(0)
    return heats


def _heads(count: int) -> str:
    return f"{count} head" + "s" * (count > 1)


def _cells(heat: Tensor) -> str:
    return f"{heat.shape[-1]}×{heat.shape[-2]} cells"
