"""featx merge: folders that jobs made each for itself, as one."""

from pathlib import Path
from typing import Annotated

import typer

from .options import err, out

SHOWN = 10

Folders = Annotated[list[Path], typer.Argument(help="Folders that featx extract --shard I/N wrote.", metavar="DIR…")]
Partial = Annotated[bool, typer.Option("--partial", help="Merge although files are missing still.")]
Target = Annotated[Path, typer.Option("--out", help="Folder for all of it: a new one, or one to add to.")]


def merge(folders: Folders, folder: Target, partial: Partial = False) -> None:
    """Join folders that jobs made with --shard, each its own."""
    from ..bulk.completeness import as_ranges
    from ..bulk.folder_merge import merge as merged

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
