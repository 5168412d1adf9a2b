"""featx stats: what is in a folder of maps."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.progress import Progress
from rich.table import Table

from .options import err, out

if TYPE_CHECKING:
    from ..bulk.stats import LevelStatistics, Statistics

SHOWN = 10

Source = Annotated[str, typer.Argument(help="Folder that featx extract wrote, or an address.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]
Picture = Annotated[Path | None, typer.Option(help="Write a picture (.png) of a few images and their maps.")]
Shown = Annotated[int, typer.Option("--images", min=1, help="Images in the picture.")]


def stats(folder: Source, json_: AsJson = False, picture: Picture = None, images: Shown = 4) -> None:
    """Count and measure a folder of maps. Exits with 1 if a file is damaged or a number is not finite."""
    from ..bulk.picture import save_picture
    from ..bulk.stats import as_json
    from ..bulk.stats import stats as measured

    with Progress(console=err, transient=True, disable=json_) as bar:
        task = bar.add_task("reading", total=None)
        found = measured(folder, lambda done, total: bar.update(task, completed=done, total=total))
    if json_:
        sys.stdout.write(json.dumps(as_json(found)) + "\n")
    else:
        _tell(found)
    if picture is not None:
        save_picture(folder, picture, images)
        err.print(f"picture: {picture}", soft_wrap=True)
    if not found.sound:
        raise typer.Exit(1)


def _tell(found: "Statistics") -> None:
    out.print(f"{found.model}, stored as {found.dtype}", soft_wrap=True)
    images, shards = found.planned
    out.print(f"{found.written} of {images} images, {found.failed.total()} failed, {found.missing} still to do")
    out.print(f"{found.shards} of {shards} files, {found.nbytes / 2**20:.1f} MiB")
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("level", "stored", "images", "mean", "std", "low", "high", "not finite"):
        table.add_column(column, justify="left" if column in ("level", "stored") else "right", no_wrap=True)
    for level in found.levels:
        _add_rows(table, level)
    out.print(table)
    for title, lines in (
        ("errors:", [f"{count} × {reason}" for reason, count in found.failed.most_common()]),
        ("not finite:", [f"{id_} in {level.name}" for level in found.levels for id_ in level.not_finite]),
        ("damaged:", list(found.damaged.values())),
    ):
        _tell_some(title, lines)


def _add_rows(table: Table, level: "LevelStatistics") -> None:
    """A row for the level, which has the most common shape, and one for each other shape, the rarest together."""
    shapes = [("×".join(map(str, shape)), count) for shape, count in level.shapes.most_common()]
    if len(shapes) > SHOWN:
        rest = shapes[SHOWN - 1 :]
        shapes = [*shapes[: SHOWN - 1], (f"{len(rest)} more shapes", sum(count for _, count in rest))]
    pooled = "" if level.pooling == "none" else f" {level.pooling}"
    numbers = [f"{number:.5g}" for number in (level.mean, level.std, level.low, level.high)]
    (shape, count), *others = shapes or [("nothing", 0)]
    table.add_row(level.name, shape + pooled, f"{count}", *numbers, f"{len(level.not_finite)}")
    for shape, count in others:
        table.add_row("", shape + pooled, f"{count}")


def _tell_some(title: str, lines: list[str]) -> None:
    if lines:
        out.print(title, style="red")
    for line in lines[:SHOWN]:
        out.print(f"  {line}", soft_wrap=True)
    if len(lines) > SHOWN:
        out.print(f"  … and {len(lines) - SHOWN} more")
