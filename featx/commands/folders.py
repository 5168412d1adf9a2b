"""featx convert, featx merge and featx stats: commands for existing folders of maps."""

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
from .progress import print_converted

if TYPE_CHECKING:
    from ..bulk.statistics import LevelStatistics, Statistics

Source = Annotated[str, typer.Argument(help="Folder that featx extract wrote, or an address.", metavar="DIR")]
Target = Annotated[Path, typer.Option("--out", help="New folder to write, or new file for parquet.")]
Partial = Annotated[bool, typer.Option("--partial", help="Read the existing files of an unfinished folder.")]
SHOWN = 10
Folders = Annotated[list[Path], typer.Argument(help="Folders that featx extract --shard I/N wrote.", metavar="DIR…")]
MergePartial = Annotated[bool, typer.Option("--partial", help="Merge even if files are missing.")]
Merged = Annotated[Path, typer.Option("--out", help="Output folder: a new one, or one to add to.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of tables.")]
Picture = Annotated[Path | None, typer.Option(help="Write a picture (.png) of a few images and their maps.")]
Files = Annotated[bool, typer.Option("--sources", help="List image files that changed or are missing, instead.")]
Check = Annotated[bool, typer.Option("--check", help="Compare the files with their checksums, instead.")]
Shown = Annotated[int, typer.Option("--images", min=1, help="Images in the picture.")]


class Formats(StrEnum):
    """Output formats."""

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

    print_converted(target, converted(folder, target, to.value, partial=partial), to.value)


def merge(folders: Folders, folder: Merged, partial: MergePartial = False) -> None:
    """Join the folders that jobs with --shard wrote."""
    from ..bulk.folder_merge import merge as merged
    from ..bulk.output_folder import as_ranges

    result = merged(folders, folder, partial=partial)
    failed = f", {result.failed} failed" if result.failed else ""
    out.print(
        f"maps of {result.written} images{failed}, {result.shards} files in {folder}, {result.added} of them new",
        soft_wrap=True,
    )
    for number, places in list(result.doubled.items())[:SHOWN]:
        others = ", ".join(map(str, places[1:]))
        out.print(f"  file {number} is in {others} too: that of {places[0]} is taken", soft_wrap=True)
    if len(result.doubled) > SHOWN:
        out.print(f"  … and {len(result.doubled) - SHOWN} more that several folders have")
    if result.missing:
        err.print(
            f"missing, or not whole: files {as_ranges(result.missing)}; merge the folders that have them into "
            f"{folder}, or resume with featx extract --out {folder}",
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
    """Print statistics of a folder of maps. The exit status is 1 if a file is damaged or a value is not finite.

    With --sources, it is 1 if an image file changed or is missing. With --check, it is 1 if a file does not match its
    checksum.
    """
    if sources + check + (picture is not None) > 1:
        raise featx.ArgumentError("--sources, --check and --picture exclude each other: call featx stats for each")
    report = _report_sources if sources else _report_checksums if check else _report_statistics
    is_sound = report(folder, json_, partial)
    if picture is not None:
        from ..bulk.preview import save_picture

        save_picture(folder, picture, images, partial=partial)
        err.print(f"picture: {picture}", soft_wrap=True)
    if not is_sound:
        raise typer.Exit(1)


def _report_statistics(folder: str, json_: bool, partial: bool) -> bool:
    """Print the statistics; return whether all files are complete and all values finite."""
    from ..bulk.statistics import as_json
    from ..bulk.statistics import stats as measured

    with _bar(json_) as progress:
        statistics = measured(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(as_json(statistics)) + "\n")
    else:
        _print_statistics(statistics)
    return statistics.sound


def _report_sources(folder: str, json_: bool, partial: bool) -> bool:
    """Print the state of the image files; return whether none has changed or is missing."""
    from ..bulk import check_sources

    with _bar(json_) as progress:
        found = check_sources(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        known = f"{found.same} as they were, {len(found.changed)} changed, {len(found.gone)} gone"
        out.print(f"files of images: {known}, {found.unknown} not known")
        for title, places in (("changed, for extract --retry-changed:", found.changed), ("gone:", found.gone)):
            _print_list(title, [f"{id_}: {place}" for id_, place in places.items()])
    return not found.changed and not found.gone


def _report_checksums(folder: str, json_: bool, partial: bool) -> bool:
    """Print the files that do not match their checksums; return whether there are none."""
    from ..bulk import check_files

    with _bar(json_) as progress:
        found = check_files(folder, progress, partial=partial)
    if json_:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    else:
        out.print(f"files: {found.sound} sound, {len(found.damaged)} damaged, {found.unknown} without a checksum")
        _print_list("damaged:", list(found.damaged.values()))
    return not found.damaged


@contextmanager
def _bar(hidden: bool) -> Iterator[Callable[[int, int], None]]:
    with Progress(console=err, transient=True, disable=hidden) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_statistics(statistics: "Statistics") -> None:
    out.print(f"{statistics.model}, stored as {statistics.dtype}", soft_wrap=True)
    images, shards = statistics.planned
    failed, missing = statistics.failed.total(), statistics.missing
    out.print(f"{statistics.written} of {images} images, {failed} failed, {missing} still to do")
    out.print(f"{statistics.shards} of {shards} files, {statistics.nbytes / 2**20:.1f} MiB")
    table = Table(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("level", "stored", "images", "mean", "std", "low", "high"):
        table.add_column(column, justify="left" if column in ("level", "stored") else "right", no_wrap=True)
    for level in statistics.levels:
        _add_rows(table, level)
    out.print(table)
    for title, lines in (
        ("errors:", [f"{count} × {reason}" for reason, count in statistics.failed.most_common()]),
        ("not finite:", [f"{id_} in {level.name}" for level in statistics.levels for id_ in level.not_finite]),
        ("damaged:", list(statistics.damaged.values())),
    ):
        _print_list(title, lines)


def _add_rows(table: Table, level: "LevelStatistics") -> None:
    """Add a row with the statistics and the most common shape of a level, and rows for its other shapes."""
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


def _print_list(title: str, lines: list[str]) -> None:
    if lines:
        out.print(title, style="red")
    for line in lines[:SHOWN]:
        out.print(f"  {escaped(line)}", soft_wrap=True)
    if len(lines) > SHOWN:
        out.print(f"  … and {len(lines) - SHOWN} more")
