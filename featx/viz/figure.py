"""Drawing: panels that each cover the area of one photograph, in rows, under a title."""

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
from .points import Point

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Palettes that keep their order for colour-blind readers and in print.
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"
DOTS_PER_INCH = 110
MOST_PIXELS = 1024  # of a photograph's longer side; no panel has more
TALLEST = 2.5  # times its width is a panel, however tall the photograph
LETTER = 0.56  # width of a letter by its height, on average
OPACITY = 0.65  # of a heat over a photograph
# Where the gray scale begins: black of a photograph is a lighter gray, so that it does not look like a heat.
BLACK = -128


@dataclass(frozen=True, slots=True)
class Scale:
    """What the colours of a heat mean: the values at both ends of a palette."""

    low: float
    high: float
    palette: str = SEQUENTIAL


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture over the area of the photograph.

    values: colours (h, w, 3), or a heat (h, w) whose colours `scale` explains; None for the photograph alone.
    over: draw it over the photograph in gray. label: of the colour bar. point: to mark.
    """

    caption: str
    values: Tensor | None = None
    scale: Scale | None = None
    over: bool = False
    label: str = ""
    point: Point | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How panels are laid out. side: width of a panel in inches; points: height of its caption's letters."""

    columns: int = 3
    side: float = 4.0
    points: int = 10


WIDE, DENSE = Layout(), Layout(columns=6, side=2.4, points=8)


def draw(image: "Image", panels: Sequence[Panel | None], layout: Layout, title: str, legend: str = "") -> "Figure":
    """A figure of panels in rows; None leaves a place empty. Raises MissingPackageError without matplotlib."""
    columns = min(layout.columns, len(panels))
    rows = -(-len(panels) // columns)
    bar = 0.8 if any(panel and panel.scale for panel in panels) else 0.0
    width = (layout.side + bar) * columns
    captions = [_wrapped(panel.caption, layout.side, layout.points) if panel else "" for panel in panels]
    caption_height = max(caption.count("\n") + 1 for caption in captions) * layout.points * 1.4 / 72
    title = _wrapped(title, width, 12)
    row_height = layout.side * min(image.height / image.width, TALLEST) + caption_height + 0.15
    figure = _figure(width, row_height * rows + (title.count("\n") + 1) * 0.25 + 0.1 + (0.25 if legend else 0))
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
    """(chs, h, w) of a map that may come as a batch of one; InputError for others."""
    if map_.ndim == 4 and len(map_) == 1:
        return map_[0]
    if map_.ndim != 3:
        raise InputError(f"a picture is of one image's map (chs, h, w), got shape {tuple(map_.shape)}")
    return map_


def scale_of(heat: Tensor) -> Scale:
    """From its least to its largest value; about 0 and in two colours if some values are negative."""
    low, high = heat.min().item(), heat.max().item()
    if low < 0:
        end = max(-low, high)
        return Scale(-end, end, DIVERGING)
    return Scale(low, high if high > low else low + 1)


def as_heat(heat: Tensor) -> Tensor:
    """(h, w) in single precision on the CPU; InputError for other shapes, NaN and infinite values."""
    heat = heat.detach()[0] if heat.ndim == 3 and len(heat) == 1 else heat.detach()
    if heat.ndim != 2 or not heat.numel():
        raise InputError(f"a heat is (h, w) or (1, h, w), got shape {tuple(heat.shape)}")
    if not heat.isfinite().all():
        raise InputError("the heat holds NaN or infinite values, which have no colour: are the weights right?")
    return heat.cpu().float()


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format its name ends with; OutputError if that is unknown or the file cannot be written."""
    require_format(path, sorted(figure.canvas.get_supported_filetypes()))
    path = local(path)
    with alone(path, MOMENT), whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH)


def png_of(figure: "Figure") -> bytes:
    """The figure as a PNG file."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
    return file.getvalue()


def pixels_of(figure: "Figure") -> "Image":
    """The figure as a picture in RGB."""
    from PIL import Image

    return Image.open(BytesIO(png_of(figure)), formats=["PNG"]).convert("RGB")


def picture_formats() -> list[str]:
    """Endings of the files that a figure can be written to; MissingPackageError without matplotlib."""
    return sorted(_figure(1, 1).canvas.get_supported_filetypes())


def require_format(path: Path, formats: Sequence[str]) -> None:
    if path.suffix.lstrip(".").lower() not in formats:
        raise OutputError(f"{path}: name a picture that ends with one of {', '.join(formats)}")


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("pictures need matplotlib: pip install 'featx[viz]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    # what notebooks ask for: matplotlib gives it to figures of pyplot alone
    vars(figure)["_repr_png_"] = partial(png_of, figure)
    return figure


def _panel(axis: Any, panel: Panel, image: "Image") -> None:
    """Draw over the area of the photograph, so that all panels line up and cells are spread evenly over it."""
    extent = (0, image.width, image.height, 0)
    if panel.values is None or panel.over:
        pixels = _reduced(image) if panel.values is None else _reduced(image).convert("L")
        axis.imshow(pixels, extent=extent, cmap="gray", vmin=BLACK, vmax=255, interpolation="antialiased")
    if panel.values is not None:
        scale, opacity = panel.scale or Scale(0, 1), OPACITY if panel.over else None
        limits = {"cmap": scale.palette, "vmin": scale.low, "vmax": scale.high}
        drawn = axis.imshow(panel.values.numpy(), extent=extent, interpolation="nearest", alpha=opacity, **limits)
        if panel.scale:
            _colour_bar(axis, drawn, panel.label)
    if panel.point is not None:
        x, y = panel.point[0] * image.width, panel.point[1] * image.height
        for colour, size in (("black", 14), ("white", 10)):  # seen on dark and on bright
            axis.plot([x], [y], "+", color=colour, markersize=size, markeredgewidth=size / 4, clip_on=False)
    axis.set(xlim=extent[:2], ylim=extent[2:])


def _colour_bar(axis: Any, drawn: Any, label: str) -> None:
    beside = axis.inset_axes((1.03, 0, 0.04, 1))  # as high as the picture, whatever its aspect
    bar = axis.figure.colorbar(drawn, cax=beside)
    bar.formatter.set_useOffset(False)  # numbers as they are, not their difference from another
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=8)


def _reduced(image: "Image") -> "Image":
    copy = image.copy()
    copy.thumbnail((MOST_PIXELS, MOST_PIXELS))
    return copy


def _wrapped(text: str, inches: float, points: int) -> str:
    """The text in lines that fit, so that long names are not cut."""
    letters = int(inches * 72 / (points * LETTER))
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters) or [""])
