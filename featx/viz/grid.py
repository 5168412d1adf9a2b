"""One photograph beside its maps, channels reduced to colours."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import ArgumentError
from ..features import FeatureInfo, Levels
from .colours import Basis, principal_colours
from .figure import DENSE, WIDE, Layout, Panel, caption_of, draw, photograph, single

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
