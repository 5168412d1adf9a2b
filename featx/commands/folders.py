"""featx convert, featx merge and featx stats: what is done with folders of maps that are there."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.progress import Progress
from rich.table import Table

import featx

from ..errors import escaped
from .options import err, out
from .progress import tell_converted

if TYPE_CHECKING:
    from ..bulk.statistics import LevelStatistics, Statistics

Source = Annotated[str, typer.Argument(help="Folder that featx extract wrote, or an address.", metavar="DIR")]
Target = Annotated[Path, typer.Option("--out", help="Folder to write, or file for parquet; a new one.")]
Partial = Annotated[bool, typer.Option("--partial", help="Take what is there of a folder that is unfinished.")]
SHOWN = 10
Folders = Annotated[list[Path], typer.Argument(help="Folders that featx extract --shard I/N wrote.", metavar="DIR…")]
MergePartial = Annotated[bool, typer.Option("--partial", help="Merge although files are missing still.")]
Merged = Annotated[Path, typer.Option("--out", help="Folder for all of it: a new one, or one to add to.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]
Picture = Annotated[Path | None, typer.Option(help="Write a picture (.png) of a few images and their maps.")]
Files = Annotated[bool, typer.Option("--sources", help="Tell instead which image files changed, or are gone.")]
Check = Annotated[bool, typer.Option("--check", help="Compare the files instead with their checksums.")]
Shown = Annotated[int, typer.Option("--images", min=1, help="Images in the picture.")]


class Formats(StrEnum):
    """What other programs read."""

    npy = "npy"
    webdataset = "webdataset"
    zarr = "zarr"
    parquet = "parquet"


def convert(
    folder: Source,
    target: Target,
    to: Annotated[Formats, typer.Option("--format", help="Format to write.")],
    partial: Partial = False,
) -> None:
    """Write a folder of maps as NumPy arrays, tars for WebDataset, a Zarr group or, vectors only, a Parquet table."""
    from ..bulk.converters import convert as converted

    tell_converted(target, converted(folder, target, to.value, partial=partial), to.value)


def merge(folders: Folders, folder: Merged, partial: MergePartial = False) -> None:
    """Join folders that jobs made with --shard, each its own."""
    from ..bulk.folder_merge import merge as merged
    from ..bulk.output_folder import as_ranges

    done = merged(folders, folder, partial=partial)
    failed = f", {done.failed} failed" if done.failed else ""
    out.print(
        f"maps of {done.written} images{failed}, {done.shards} files in {folder}, {done.added} of them new",
        soft_wrap=True,
    )
    for number, places in list(done.doubled.items())[:SHOWN]:
        others = ", ".join(map(str, places[1:]))
        out.print(f"  file {number} is in {others} too: that of {places[0]} is taken", soft_wrap=True)
    if len(done.doubled) > SHOWN:
        out.print(f"  … and {len(done.doubled) - SHOWN} more that several folders have")
    if done.missing:
        err.print(
            f"missing, or not whole: files {as_ranges(done.missing)}; merge the folders that have them into {folder}, "
            f"or go on with featx extract --out {folder}",
            soft_wrap=True,
        )


def stats(
    folder: Source,
    json_: AsJson = False,
    picture: Picture = None,
    images: Shown = 4,
    sources: Files = False,
    check: Check = False,
    partial: Partial = False,
) -> None:
    """Count and measure a folder of maps. Exits with 1 if a file is damaged or a number is not finite.

    With --sources, exits with 1 if an image file is another one now, or gone. With --check, exits with 1 if a file's
    bytes are others than were written.
    """
    if sources + check + (picture is not None) > 1:
        raise featx.ArgumentError("--sources, --check and --picture exclude each other: call featx stats for each")
    tell = _sources if sources else _checksums if check else _numbers
    found = tell(folder, json_, partial)
    if picture is not None:
        from ..bulk.preview import save_picture

        save_picture(folder, picture, images, partial=partial)
        err.print(f"picture: {picture}", soft_wrap=True)
    if not found:
        raise typer.Exit(1)


def _numbers(folder: str, json_: bool, partial: bool) -> bool:
    """Tell what is in the folder; whether it is sound."""
    from ..bulk.statistics import as_json
    from ..bulk.statistics import stats as measured

    with _bar(json_) as progress:
        found = measured(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(as_json(found)) + "\n")
    else:
        _tell(found)
    return found.sound


def _sources(folder: str, json_: bool, partial: bool) -> bool:
    """Tell what became of the image files; whether all are as they were, as far as that is known."""
    from ..bulk import check_sources

    with _bar(json_) as progress:
        found = check_sources(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        known = f"{found.same} as they were, {len(found.changed)} changed, {len(found.gone)} gone"
        out.print(f"files of images: {known}, {found.unknown} not known")
        for title, places in (("changed, for extract --retry-changed:", found.changed), ("gone:", found.gone)):
            _tell_some(title, [f"{id_}: {place}" for id_, place in places.items()])
    return not found.changed and not found.gone


def _checksums(folder: str, json_: bool, partial: bool) -> bool:
    """Tell which files hold other bytes than were written; whether none does."""
    from ..bulk import check_files

    with _bar(json_) as progress:
        found = check_files(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        out.print(f"files: {found.sound} sound, {len(found.damaged)} damaged, {found.unknown} without a checksum")
        _tell_some("damaged:", list(found.damaged.values()))
    return not found.damaged


@contextmanager
def _bar(hidden: bool) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=err, transient=True, disable=hidden) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell(found: "Statistics") -> None:
    out.print(f"{found.model}, stored as {found.dtype}", soft_wrap=True)
    images, shards = found.planned
    out.print(f"{found.written} of {images} images, {found.failed.total()} failed, {found.missing} still to do")
    out.print(f"{found.shards} of {shards} files, {found.nbytes / 2**20:.1f} MiB")
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("level", "stored", "images", "mean", "std", "low", "high"):
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
    numbers = [f"{number:.4g}" for number in (level.mean, level.std, level.low, level.high)]
    (shape, count), *others = shapes or [("nothing", 0)]
    table.add_row(level.name, shape + pooled, f"{count}", *numbers)
    for shape, count in others:
        table.add_row("", shape + pooled, f"{count}")


def _tell_some(title: str, lines: list[str]) -> None:
    if lines:
        out.print(title, style="red")
    for line in lines[:SHOWN]:
        out.print(f"  {escaped(line)}", soft_wrap=True)
    if len(lines) > SHOWN:
        out.print(f"  … and {len(lines) - SHOWN} more")
