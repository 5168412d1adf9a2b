"""Figures of panels in rows under a title. Each panel covers the area of one photograph."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import InputError, MissingPackageError, OutputError
from ..features import FeatureInfo
from ..locks import MOMENT
from ..whole_files import alone, local, whole_file
from .cell_similarity import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Palettes that stay ordered for color-blind readers and in print.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
DOTS_PER_INCH = 110
LONGEST_SIDE = 1024  # pixels of the photograph's longer side in a panel
TALLEST_PANEL = 2.5  # largest height of a panel relative to its width
LETTER_WIDTH = 0.56  # mean width of a letter relative to its height
OPACITY = 0.65  # of a heatmap over a photograph
# Lower end of the gray scale: black pixels of the photograph are drawn gray, unlike dark cells of a heatmap.
GRAY_MIN = -128


@dataclass(frozen=True, slots=True)
class ColorScale:
    """The values at both ends of a heatmap's palette."""

    low: float
    high: float
    palette: str = SEQUENTIAL


@dataclass(frozen=True, slots=True)
class Panel:
    """One image of a figure, drawn over the area of the photograph.

    Attributes:
        caption: the text above the panel.
        values: RGB colors (h, w, 3) or a heatmap (h, w); None shows the photograph alone.
        scale: the value range of a heatmap, shown as a color bar.
        over: whether to draw the values over the photograph in gray.
        label: of the color bar.
        point: a position to mark.
    """

    caption: str
    values: Tensor | None = None
    scale: ColorScale | None = None
    over: bool = False
    label: str = ""
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class FigureLayout:
    """Columns of panels, width of a panel (`side`) in inches, and font size of captions in points."""

    columns: int = 3
    side: float = 4.0
    points: int = 10


WIDE, DENSE = FigureLayout(), FigureLayout(columns=6, side=2.4, points=8)


def draw(
    image: "Image", panels: Sequence[Panel | None], layout: FigureLayout, title: str, legend: str = ""
) -> "Figure":
    """A figure of panels in rows. None leaves a cell empty.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    columns = min(layout.columns, len(panels))
    rows = -(-len(panels) // columns)
    bar = 0.8 if any(panel and panel.scale for panel in panels) else 0.0
    width = (layout.side + bar) * columns
    captions = [_wrap(panel.caption, layout.side, layout.points) if panel else "" for panel in panels]
    caption_height = max(caption.count("\n") + 1 for caption in captions) * layout.points * 1.4 / 72
    title = _wrap(title, width, 12)
    row_height = layout.side * min(image.height / image.width, TALLEST_PANEL) + caption_height + 0.15
    figure = new_figure(width, row_height * rows + (title.count("\n") + 1) * 0.25 + 0.1 + (0.25 if legend else 0))
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.set_axis_off()
    for axis, panel, caption in zip(axes, panels, captions, strict=False):
        if panel is not None:
            _panel(axis, panel, image)
            axis.set_title(caption, fontsize=layout.points, parse_math=False)
    figure.suptitle(title, parse_math=False)
    figure.supxlabel(legend, fontsize=8, parse_math=False)
    return figure


def photograph(image: "Image") -> Panel:
    return Panel(f"photograph\n{image.width}×{image.height} pixels")


def caption_of(level: FeatureInfo, map_: Tensor) -> str:
    """Name, channels, reduction and size of a map (chs, h, w)."""
    return f"{level.name}\n{level.chs} channels · 1/{level.reduction} · {map_.shape[2]}×{map_.shape[1]} cells"


def single(map_: Tensor) -> Tensor:
    """Remove the batch axis of a map of one image, if it has one. InputError for other shapes."""
    if map_.ndim == 4 and len(map_) == 1:
        return map_[0]
    if map_.ndim != 3:
        raise InputError(f"a picture is of one image's map (chs, h, w), got shape {tuple(map_.shape)}")
    return map_


def scale_of(heat: Tensor) -> ColorScale:
    """The range of a heatmap's values; with a diverging palette centered at 0 if some are negative."""
    low, high = heat.min().item(), heat.max().item()
    if low < 0:
        end = max(-low, high)
        return ColorScale(-end, end, DIVERGING)
    return ColorScale(low, high if high > low else low + 1)


def as_heat(heat: Tensor) -> Tensor:
    """The heatmap as (h, w) in float32 on the CPU. InputError for other shapes, NaN and infinite values."""
    heat = heat.detach()[0] if heat.ndim == 3 and len(heat) == 1 else heat.detach()
    if heat.ndim != 2 or not heat.numel():
        raise InputError(f"a heat is (h, w) or (1, h, w), got shape {tuple(heat.shape)}")
    if not heat.isfinite().all():
        raise InputError("the heat holds NaN or infinite values, which have no color: are the weights right?")
    return heat.cpu().float()


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format that the suffix of `path` names.

    Raises:
        OutputError: the suffix is unknown, or the file cannot be written.
    """
    require_format(path, sorted(figure.canvas.get_supported_filetypes()))
    path = local(path)
    with alone(path, MOMENT), whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH)


def png_of(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def pixels_of(figure: "Figure") -> "Image":
    """The figure as an RGB image."""
    from PIL import Image

    return Image.open(BytesIO(png_of(figure)), formats=["PNG"]).convert("RGB")


def picture_formats() -> list[str]:
    """Suffixes of the formats that a figure can be saved in. MissingPackageError without matplotlib."""
    return sorted(new_figure(1, 1).canvas.get_supported_filetypes())


def require_format(path: Path, formats: Sequence[str]) -> None:
    if path.suffix.lstrip(".").lower() not in formats:
        raise OutputError(f"{path}: name a picture that ends with one of {', '.join(formats)}")


def new_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("pictures need matplotlib: pip install 'featx[viz]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    # Notebooks display a figure through this method, which matplotlib adds to figures of pyplot only.
    vars(figure)["_repr_png_"] = partial(png_of, figure)
    return figure


def _panel(axis: Any, panel: Panel, image: "Image") -> None:
    """Draw a panel over the area of the photograph, so that panels align and cells are spread evenly over it."""
    extent = (0, image.width, image.height, 0)
    if panel.values is None or panel.over:
        pixels = _thumbnail(image) if panel.values is None else _thumbnail(image).convert("L")
        axis.imshow(pixels, extent=extent, cmap="gray", vmin=GRAY_MIN, vmax=255, interpolation="antialiased")
    if panel.values is not None:
        scale, opacity = panel.scale or ColorScale(0, 1), OPACITY if panel.over else None
        limits = {"cmap": scale.palette, "vmin": scale.low, "vmax": scale.high}
        drawn = axis.imshow(panel.values.numpy(), extent=extent, interpolation="nearest", alpha=opacity, **limits)
        if panel.scale:
            _color_bar(axis, drawn, panel.label)
    if panel.point is not None:
        x, y = panel.point[0] * image.width, panel.point[1] * image.height
        for color, size in (("black", 14), ("white", 10)):  # visible on dark and on bright pixels
            axis.plot([x], [y], "+", color=color, markersize=size, markeredgewidth=size / 4, clip_on=False)
    axis.set(xlim=extent[:2], ylim=extent[2:])


def _color_bar(axis: Any, drawn: Any, label: str) -> None:
    bar_axis = axis.inset_axes((1.03, 0, 0.04, 1))  # as high as the panel at any aspect ratio
    bar = axis.figure.colorbar(drawn, cax=bar_axis)
    bar.formatter.set_useOffset(False)  # label absolute values, not differences from an offset
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def _thumbnail(image: "Image") -> "Image":
    copy = image.copy()
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return copy


def _wrap(text: str, inches: float, points: int) -> str:
    """Wrap text to a width, so that long names are not clipped."""
    letters = int(inches * 72 / (points * LETTER_WIDTH))
    return "\n".join(row for line in text.split("\n") for row in textwrap.wrap(line, letters) or [""])
