"""A chart of a report: a panel per score, a row per model and level, and a color per model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError
from ..viz.figure import SEQUENTIAL, new_figure
from .report import TITLES, Report, Row, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_HEIGHT, PANEL_WIDTH, MARGIN = 0.24, 2.3, 1.1  # inches
LETTER = 0.075  # inches of a letter of a row's label
LIGHTEST = 0.85  # of the palette, so that points are visible on white


def chart(report: Report, title: str = "") -> "Figure":
    """A figure with a point and its 95 % interval per score; the best of a score is a diamond.

    Args:
        report: of at least one task that has a score per level.
        title: of the figure.

    Raises:
        ArgumentError: the report is of CKA alone.
        MissingPackageError: matplotlib is not installed.
    """
    rows, tasks = report.rows, report.tasks
    if not tasks:
        raise ArgumentError("the report has no score per level, which a chart shows: measure other tasks than cka, too")
    labels = [f"{row.level.name} · {row.level.chs} · 1/{row.level.reduction}" for row in rows]
    width = PANEL_WIDTH * len(tasks) + LETTER * max(map(len, labels))
    figure = new_figure(width, ROW_HEIGHT * len(rows) + MARGIN)
    axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0].tolist()
    colors = _colors([row.model for row in rows])
    for axis, task in zip(axes, tasks, strict=True):
        _panel(axis, report, task, colors)
    axes[0].set_yticks(range(len(rows)), labels, fontsize=8, parse_math=False)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    handles = [axes[0].plot([], [], "o", color=color, label=model)[0] for model, color in colors.items()]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=len(colors), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _panel(axis: Any, report: Report, task: Task, colors: dict[str, Any]) -> None:
    best = report.best(task)
    for place, row in enumerate(report.rows):
        score = row.scores[task]
        axis.plot([score.low, score.high], [place, place], "-", color=colors[row.model], linewidth=1.5)
        marker, size = ("D", 6) if any(row is other for other in best) else ("o", 4)
        axis.plot([score.value], [place], marker, color=colors[row.model], markersize=size)
    for place in _boundaries(report.rows):
        axis.axhline(place, color="0.8", linewidth=0.8)
    axis.set_title(TITLES[task], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)


def _boundaries(rows: Sequence[Row]) -> list[float]:
    """Places of lines between models."""
    return [place - 0.5 for place in range(1, len(rows)) if rows[place].model != rows[place - 1].model]


def _colors(models: Sequence[str]) -> dict[str, Any]:
    """A color of one palette for each model, in their order."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(models))
    return {name: colormaps[SEQUENTIAL](LIGHTEST * place / max(1, len(names) - 1)) for place, name in enumerate(names)}
