"""Figures of maps: channels reduced to colours, and heats, one number per cell in colours that a bar explains."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .colours import Basis, principal_colours
from .figure import DENSE, WIDE, Layout, Panel, as_heat, caption_of, draw, photograph, scale_of, single
from .points import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

OWN = "colours: each map's three strongest principal components as red, green and blue"
SHARED = "colours: three principal components of all images together; the same colour is the same in each picture"


def maps_grid(
    image: "Image", maps: Sequence[Tensor], levels: Levels, *, title: str = "", basis: Sequence[Basis] | None = None
) -> "Figure":
    """A figure with `image` and each of its maps (1, chs, h, w) or (chs, h, w), in the order given.

    Every map is titled with its level, channels, reduction and size. basis: one per level, from `shared_bases`, so that
    the colours of several images can be compared. Raises MissingPackageError without matplotlib, InputError for NaN.
    """
    bases = basis or [None] * len(maps)
    panels = [_panel(map_, level, own) for map_, level, own in zip(maps, levels, bases, strict=True)]
    return draw(image, [photograph(image), *panels], WIDE, title, SHARED if basis else OWN)


def compare(image: "Image", rows: Mapping[str, tuple[Sequence[Tensor], Levels]], *, title: str = "") -> "Figure":
    """A figure with one row per model: its name over the photograph, then its maps.

    rows: what each model returned for `image`, with its levels, by the model's name. Raises ArgumentError without rows,
    MissingPackageError without matplotlib.
    """
    if not rows:
        raise ArgumentError("rows is empty: pass the maps and levels of at least one model")
    columns = 1 + max(len(levels) for _, levels in rows.values())
    panels: list[Panel | None] = []
    for name, (maps, levels) in rows.items():
        row = [_panel(map_, level, None) for map_, level in zip(maps, levels, strict=True)]
        panels += [Panel(name), *row, *[None] * (columns - 1 - len(row))]
    return draw(image, panels, Layout(columns, DENSE.side, DENSE.points), title, OWN)


def _panel(map_: Tensor, level: FeatureInfo, basis: Basis | None) -> Panel:
    map_ = single(map_)
    return Panel(caption_of(level, map_), basis.colours(map_) if basis else principal_colours(map_))


def norms(image: "Image", maps: Sequence[Tensor], levels: Levels, *, title: str = "") -> "Figure":
    """A figure with `image` and, per level, the length of every cell's vector of channels.

    maps: (1, chs, h, w) or (chs, h, w) each. Raises MissingPackageError without matplotlib, InputError for NaN.
    """
    panels = [photograph(image)]
    for map_, level in zip(map(single, maps), levels, strict=True):
        heat = as_heat(map_.detach().double().norm(dim=0))
        panels.append(Panel(caption_of(level, map_), heat, scale_of(heat), label="norm"))
    return draw(image, panels, WIDE, title)


def channels(image: "Image", map_: Tensor, level: FeatureInfo, *, count: int = 16, title: str = "") -> "Figure":
    """A figure with `image` and the channels of one map that vary most over its cells, the most varying first.

    map_: (1, chs, h, w) or (chs, h, w). Every channel's colours span its own values. Raises ArgumentError for a count
    below 1, MissingPackageError without matplotlib.
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
    """A figure of a heat (h, w) over the photograph in gray, at its own aspect, beside a bar of colours.

    Cells are spread evenly over the photograph. Colours span the values; about 0, in two colours, if some are negative.
    label: what the numbers are. point: (x, y), shares of width and height, to mark. Raises InputError for another shape
    and for NaN, MissingPackageError without matplotlib.
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
    """A figure with the photograph and, as `overlay`, each of several heats (h, w) under its caption."""
    panels = [photograph(image)]
    for caption, given in heats.items():
        heat = as_heat(given)
        panels.append(Panel(caption, heat, scale_of(heat), True, label, point))
    return draw(image, panels, WIDE, title)
