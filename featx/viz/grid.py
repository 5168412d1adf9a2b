"""One photograph beside its maps, channels reduced to colours."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, MissingPackageError, OutputError
from ..features import Levels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLUMNS = 3


def principal_colours(map_: Tensor) -> Tensor:
    """(chs, h, w) to (h, w, 3) in [0, 1]: the cells' three principal components as red, green and blue.

    A component spans its 1st to 99th percentile. Where there are fewer components than colours the rest is mid-gray.
    Raises InputError for NaN and infinite values.
    """
    if not map_.isfinite().all():
        raise InputError("the map holds NaN or infinite values, which have no colour: are the weights right?")
    cells = map_.detach().cpu().double().flatten(1).T  # (h w, chs)
    cells = cells - cells.mean(0)
    left, scale, axes = torch.linalg.svd(cells, full_matrices=False)
    # the sign of a component is arbitrary: make its largest weight positive, so that a picture does not depend on luck
    signs = axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign().T
    parts = (left * scale * signs)[:, :3]
    low, high = torch.quantile(parts, torch.tensor([0.01, 0.99], dtype=parts.dtype), dim=0)
    span = high - low
    flat = span <= 1e-9 * scale.max().clamp(min=1e-300)
    colours = torch.where(flat, 0.5, (parts - low) / span.where(~flat, 1.0)).clamp(0, 1)
    missing = torch.full((len(cells), 3 - parts.shape[1]), 0.5, dtype=parts.dtype)
    return torch.cat([colours, missing], 1).unflatten(0, tuple(map_.shape[1:])).float()


def maps_grid(image: "Image", maps: Sequence[Tensor], levels: Levels, *, title: str = "") -> "Figure":
    """A figure with `image` and each of its maps (1, chs, h, w) or (chs, h, w), in the order given.

    Every map is titled with its level, channels, reduction and size. Raises MissingPackageError without matplotlib.
    """
    figure, axes = _axes(1 + len(maps), image.height / image.width)
    _panel(axes[0], image, image, f"photograph\n{image.width}×{image.height} pixels")
    for axis, map_, level in zip(axes[1:], maps, levels, strict=True):
        map_ = map_[0] if map_.ndim == 4 else map_
        height, width = map_.shape[1:]
        caption = f"{level.name}\n{level.chs} channels · 1/{level.reduction} · {width}×{height} cells"
        _panel(axis, principal_colours(map_).numpy(), image, caption)
    figure.suptitle(title, parse_math=False)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure in the format its name ends with; OutputError if that is unknown or the file cannot be written."""
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise OutputError(f"{path}: name a picture that ends with one of {', '.join(sorted(formats))}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def _axes(count: int, aspect: float) -> tuple["Figure", list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("pictures need matplotlib: pip install 'featx[viz]'") from error
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, (4 * min(aspect, 2.5) + 0.5) * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.set_axis_off()
    return figure, axes[:count]


def _panel(axis: Any, picture: Any, image: "Image", caption: str) -> None:
    """Draw `picture` over the area of `image`, so that all panels line up."""
    axis.imshow(picture, interpolation="nearest", extent=(0, image.width, image.height, 0))
    axis.set_title(caption, fontsize=10)
