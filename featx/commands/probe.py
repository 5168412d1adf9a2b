"""featx probe: scores of the levels of models on labeled images, before anything is trained."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.box import SIMPLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import featx

from ..whole_files import local
from .options import CheckpointPath, Pretrained, RandomWeights, Size, WeightSource, err, out, weight_source

if TYPE_CHECKING:
    from ..bulk import Items
    from ..probe import MapSource, Report, Row
    from ..probe.measurement import Measured
    from ..probe.report import Task

Inputs = Annotated[
    list[str],
    typer.Argument(help="Images, with --model; or folders that featx extract wrote, without it.", metavar="INPUT…"),
]
Models = Annotated[
    str | None, typer.Option("--model", "--models", metavar="NAME[,NAME…]", help="Models that compute maps of images.")
]
Labels = Annotated[
    str | None, typer.Option(metavar="FILE.csv", help="Columns path and label; by default, subfolders are classes.")
]
Masks = Annotated[
    Path | None, typer.Option(metavar="DIR", help="PNG files of class ids, named as the images; 255 is unlabeled.")
]
MaskClasses = Annotated[int | None, typer.Option(min=2, max=255, help="Number of classes of the masks.")]
Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="T,T,…", help="knn, linear, segmentation, correspondence, rank, cka; by default all that are possible."
    ),
]
OutIndices = Annotated[
    str | None, typer.Option(metavar="I,J,…", help="Levels, by number or name, such as 2,-1; all by default.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Report to write: .json, or .csv.")]
Picture = Annotated[Path | None, typer.Option(help="Chart of the scores to write, such as probe.png.")]
Device = Annotated[str, typer.Option(help="Where models run: auto, cpu, cuda, cuda:1, …")]
Folds = Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")]
Neighbors = Annotated[int, typer.Option(min=1, help="Neighbors of the kNN classifier.")]
Seed = Annotated[int, typer.Option(min=0, help="Of folds, draws and transformations.")]

# Headers of the scores, whether they are shown in percent.
COLUMNS: "dict[Task, tuple[str, bool]]" = {
    "knn": ("kNN", True),
    "linear": ("linear", True),
    "segmentation": ("mIoU", True),
    "correspondence": ("PCK", True),
    "rank": ("rank", False),
}
WIDEST_CKA = 16  # levels in a printed matrix
WIDTH = 110  # columns of a table that is not printed to a terminal


def probe(
    inputs: Inputs,
    model: Models = None,
    labels: Labels = None,
    masks: Masks = None,
    mask_classes: MaskClasses = None,
    tasks: Tasks = None,
    out_indices: OutIndices = None,
    pretrained: Pretrained = False,
    checkpoint_path: CheckpointPath = None,
    random_weights: RandomWeights = None,
    size: Size = None,
    device: Device = "auto",
    folds: Folds = 5,
    neighbors: Neighbors = 5,
    seed: Seed = 0,
    report: Out = None,
    picture: Picture = None,
) -> None:
    """Score every level of models on your images: which backbone and which level to use.

    kNN and linear accuracy, linear segmentation, correspondence, effective rank and CKA, with 95 % intervals.
    """
    from ..probe import MaskFolder, ProbeOptions, measure
    from ..probe.report import require_suffix

    report = None if report is None else require_suffix(report)
    picture = None if picture is None else _require_picture(picture)
    if mask_classes is not None and masks is None:
        raise featx.ArgumentError("--mask-classes counts the classes of masks: add --masks DIR")
    weights = weight_source(pretrained, checkpoint_path, random_weights)
    sources = _sources(inputs, model, weights, out_indices, size, device)
    with _bar() as progress:
        result = measure(
            sources,
            labels=labels,
            masks=None if masks is None else MaskFolder(masks, mask_classes),
            tasks=None if tasks is None else [cast("Measured", task.strip()) for task in tasks.split(",")],
            options=ProbeOptions(folds=folds, neighbors=neighbors, seed=seed),
            progress=progress,
        )
    _print(result)
    if report is not None:
        result.save(report)
        out.print(f"{report}: scores of {len(result.rows)} levels", soft_wrap=True)
    if picture is not None:
        _save_picture(result, picture)


def _require_picture(path: Path) -> Path:
    from ..viz.figure import picture_formats, require_format

    require_format(path, picture_formats())
    return local(path)


def _sources(
    inputs: Sequence[str], model: str | None, weights: WeightSource, levels: str | None, size: int | None, device: str
) -> "list[MapSource]":
    from ..bulk import find_items
    from ..bulk.meta import read_meta
    from ..probe import StoredMaps

    indices, names = _levels(levels)
    if model is None:
        if not_stored := [path for path in inputs if read_meta(path) is None]:
            raise featx.ArgumentError(
                f"{not_stored[0]} is not a folder that featx extract wrote: add --model NAME to compute maps of images"
            )
        if size is not None or weights != WeightSource():
            raise featx.ArgumentError("--size, --checkpoint-path and --random-weights are for --model, not stored maps")
        return [StoredMaps(folder, indices, out_names=names) for folder in inputs]
    models = [name.strip() for name in model.split(",")]
    if len(models) > 1 and weights.checkpoint_path:
        raise featx.ArgumentError(
            f"--model {model}: one --checkpoint-path does not fit several models; extract the maps of each one, and "
            "probe their folders"
        )
    if len(inputs) > 1:
        raise featx.ArgumentError(
            f"{len(inputs)} inputs of images: name the one folder that has a folder per class, such as that above "
            f"{inputs[0]}"
        )
    items = find_items(inputs[0])
    return [_computed(name, items, weights, (indices, names), size, device) for name in models]


def _computed(
    name: str,
    items: "Items",
    weights: WeightSource,
    levels: tuple[list[int] | None, list[str] | None],
    size: int | None,
    device: str,
) -> "MapSource":
    from ..probe import ComputedMaps

    with weights.loading(name):
        extractor = featx.create_model(
            name,
            weights.published,
            features_only=True,
            out_indices=levels[0],
            out_names=levels[1],
            checkpoint_path=weights.checkpoint_path,
        )
    return ComputedMaps(items, extractor.eval(), name=name, size=size, device=device)


def _levels(text: str | None) -> tuple[list[int] | None, list[str] | None]:
    """Indices or names of the levels."""
    if text is None:
        return None, None
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part) for part in parts], None
    except ValueError:
        return None, parts


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        known = {}

        def update(name: str, done: int, total: int) -> None:
            if name not in known:
                known[name] = bar.add_task(name, total=total)
            bar.update(known[name], completed=done)

        yield update


def _print(report: "Report") -> None:
    """Print a table per model, the matrix of CKA, and what was not measured."""
    for name in dict.fromkeys(row.model for row in report.rows):
        table = Table(title=name, title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
        table.add_column("level", no_wrap=True)
        for column in ("chs", "reduction", *(COLUMNS[task][0] for task in report.tasks)):
            table.add_column(column, justify="right", no_wrap=True)
        for row in report.rows:
            if row.model == name:
                scores = [_cell(report, row, task) for task in report.tasks]
                table.add_row(row.level.name, f"{row.level.chs}", f"{row.level.reduction}", *scores)
        _print_table(table)
    classes = f" of {len(report.classes)} classes" if report.classes else ""
    out.print(
        f"{report.images} images{classes}; kNN, linear, mIoU and PCK in percent, ± half of the 95 % interval; * best",
        soft_wrap=True,
    )
    _print_cka(report)
    for reason in dict.fromkeys(report.omitted.values()):
        tasks = ", ".join(task for task, other in report.omitted.items() if other == reason)
        out.print(f"not measured: {tasks}: {reason}", soft_wrap=True)


def _cell(report: "Report", row: "Row", task: "Task") -> str:
    score, is_percent = row.scores[task], COLUMNS[task][1]
    factor = 100 if is_percent else 1
    mark = "*" if any(row is best for best in report.best(task)) else " "
    return f"{factor * score.value:.1f} ±{factor * (score.high - score.low) / 2:.1f}{mark}"


def _print_cka(report: "Report") -> None:
    if not report.cka:
        return
    if len(report.cka) > WIDEST_CKA:
        out.print(f"CKA of {len(report.cka)} levels: written by --out FILE.json, as is its interval", soft_wrap=True)
        return
    table = Table(title="CKA", title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("level", no_wrap=True)
    for number in range(1, len(report.cka) + 1):
        table.add_column(f"{number}", justify="right", no_wrap=True)
    for number, (row, scores) in enumerate(zip(report.rows, report.cka, strict=True), 1):
        table.add_row(f"{number} {row.model} {row.level.name}", *(f"{score.value:.2f}" for score in scores))
    _print_table(table)


def _print_table(table: Table) -> None:
    if out.is_terminal:
        out.print(table)
    else:
        out.print(table, width=max(out.width, WIDTH), crop=False)


def _save_picture(report: "Report", picture: Path) -> None:
    from ..probe import chart
    from ..viz import save_figure

    save_figure(chart(report, f"{report.images} images, 95 % intervals; diamonds: best"), picture)
    out.print(f"{picture}: {len(report.tasks)} scores of {len(report.rows)} levels", soft_wrap=True)
