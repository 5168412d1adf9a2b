"""Heats: one number per cell, in colours that a bar explains, alone or over the photograph."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .figure import DENSE, WIDE, Panel, as_heat, caption_of, draw, photograph, scale_of, single
from .points import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


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
