"""Figures of feature maps: PCA colors, and heatmaps with a color bar."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .cell_similarity import Point
from .figure import DENSE, WIDE, FigureLayout, Panel, as_heat, caption_of, draw, photograph, scale_of, single
from .pca_colors import Basis, principal_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLORS_PER_MAP = "colors: each map's three strongest principal components as red, green and blue"
COLORS_SHARED = (
    "colors: three principal components of all images together; the same color means the same in each picture"
)


def maps_grid(
    image: "Image", maps: Sequence[Tensor], levels: Levels, *, title: str = "", basis: Sequence[Basis] | None = None
) -> "Figure":
    """A figure of `image` and its maps in PCA colors, each titled with its level, channels, reduction and size.

    Args:
        image: the photograph.
        maps: one (1, chs, h, w) or (chs, h, w) per level.
        levels: the levels of the maps.
        title: the title of the figure.
        basis: one basis per level from `shared_bases`, to make the colors of several images comparable.

    Raises:
        InputError: a map holds NaN or infinite values.
        MissingPackageError: matplotlib is not installed.
    """
    bases = basis or [None] * len(maps)
    panels = [_panel(map_, level, map_basis) for map_, level, map_basis in zip(maps, levels, bases, strict=True)]
    return draw(image, [photograph(image), *panels], WIDE, title, COLORS_SHARED if basis else COLORS_PER_MAP)


def compare(image: "Image", rows: Mapping[str, tuple[Sequence[Tensor], Levels]], *, title: str = "") -> "Figure":
    """A figure with one row per model: the photograph titled with the model's name, then its maps.

    Args:
        image: the photograph.
        rows: by model name, the maps of `image` and their levels.
        title: the title of the figure.

    Raises:
        ArgumentError: `rows` is empty.
        MissingPackageError: matplotlib is not installed.
    """
    if not rows:
        raise ArgumentError("rows is empty: pass the maps and levels of at least one model")
    columns = 1 + max(len(levels) for _, levels in rows.values())
    panels: list[Panel | None] = []
    for name, (maps, levels) in rows.items():
        row = [_panel(map_, level, None) for map_, level in zip(maps, levels, strict=True)]
        panels += [Panel(name), *row, *[None] * (columns - 1 - len(row))]
    return draw(image, panels, FigureLayout(columns, DENSE.side, DENSE.points), title, COLORS_PER_MAP)


def _panel(map_: Tensor, level: FeatureInfo, basis: Basis | None) -> Panel:
    map_ = single(map_)
    return Panel(caption_of(level, map_), basis.colors(map_) if basis else principal_colors(map_))


def norms(image: "Image", maps: Sequence[Tensor], levels: Levels, *, title: str = "") -> "Figure":
    """A figure of `image` and, per level, the L2 norm over channels at every cell.

    Args:
        image: the photograph.
        maps: one (1, chs, h, w) or (chs, h, w) per level.
        levels: the levels of the maps.
        title: the title of the figure.

    Raises:
        InputError: a map holds NaN or infinite values.
        MissingPackageError: matplotlib is not installed.
    """
    panels = [photograph(image)]
    for map_, level in zip(map(single, maps), levels, strict=True):
        heat = as_heat(map_.detach().double().norm(dim=0))
        panels.append(Panel(caption_of(level, map_), heat, scale_of(heat), label="norm"))
    return draw(image, panels, WIDE, title)


def channels(image: "Image", map_: Tensor, level: FeatureInfo, *, count: int = 16, title: str = "") -> "Figure":
    """A figure of `image` and the channels of one map with the largest standard deviation over cells, largest first.

    Args:
        image: the photograph.
        map_: (1, chs, h, w) or (chs, h, w). The colors of each channel span its own values.
        level: the level of the map.
        count: the number of channels.
        title: the title of the figure.

    Raises:
        ArgumentError: `count` is below 1.
        MissingPackageError: matplotlib is not installed.
    """
    if count < 1:
        raise ArgumentError(f"count={count}: expected at least one channel")
    map_ = single(map_)
    heats = map_.detach().cpu().float()
    strongest = heats.double().flatten(1).std(1, correction=0).argsort(descending=True, stable=True)[:count]
    panels = [photograph(image)]
    for channel in strongest.tolist():
        heat = as_heat(heats[channel])
        panels.append(Panel(f"channel {channel}", heat, scale_of(heat)))
    shown = f"the {len(strongest)} that vary most of {caption_of(level, map_)}".replace("\n", ", ")
    return draw(image, panels, DENSE, f"{title}\n{shown}".strip())


def overlay(
    image: "Image",
    heat: Tensor,
    *,
    title: str = "",
    label: str = "",
    point: Point | None = None,
) -> "Figure":
    """A figure of a heatmap over the photograph in gray, with a color bar.

    Cells are spread evenly over the photograph. Colors span the values; if some are negative, the palette diverges
    from 0.

    Args:
        image: the photograph, drawn at its own aspect ratio.
        heat: (h, w).
        title: the title of the figure.
        label: what the values measure, for the color bar.
        point: (x, y) to mark, as fractions of width and height.

    Raises:
        InputError: the heatmap has another shape, or holds NaN or infinite values.
        MissingPackageError: matplotlib is not installed.
    """
    heat = as_heat(heat)
    caption = f"{heat.shape[1]}×{heat.shape[0]} cells"
    return draw(image, [Panel(caption, heat, scale_of(heat), True, label, point)], WIDE, title)


def overlays(
    image: "Image",
    heats: Mapping[str, Tensor],
    *,
    title: str = "",
    label: str = "",
    point: Point | None = None,
) -> "Figure":
    """A figure of the photograph and several heatmaps over it, each under its caption.

    Args:
        image: the photograph, drawn at its own aspect ratio.
        heats: heatmaps (h, w) by caption.
        title: the title of the figure.
        label: what the values measure, for the color bars.
        point: (x, y) to mark, as fractions of width and height.

    Raises:
        InputError: a heatmap has another shape, or holds NaN or infinite values.
        MissingPackageError: matplotlib is not installed.
    """
    panels = [photograph(image)]
    for caption, values in heats.items():
        heat = as_heat(values)
        panels.append(Panel(caption, heat, scale_of(heat), True, label, point))
    return draw(image, panels, WIDE, title)
