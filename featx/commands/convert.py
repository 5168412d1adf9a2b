"""featx convert: stored maps in the format of another program."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .telling import tell_converted


class Formats(StrEnum):
    """What other programs read."""

    npy = "npy"
    webdataset = "webdataset"
    zarr = "zarr"
    parquet = "parquet"


Source = Annotated[str, typer.Argument(help="Folder that featx extract wrote, or an address.", metavar="DIR")]
Target = Annotated[Path, typer.Option("--out", help="Folder to write, or file for parquet; a new one.")]


Partial = Annotated[bool, typer.Option("--partial", help="Take what is there of a folder that is unfinished.")]


def convert(
    folder: Source,
    target: Target,
    to: Annotated[Formats, typer.Option("--format", help="Format to write.")],
    partial: Partial = False,
) -> None:
    """Write a folder of maps as NumPy arrays, tars for WebDataset, a Zarr group or, vectors only, a Parquet table."""
    from ..bulk.formats import convert as converted

    tell_converted(target, converted(folder, target, to.value, partial=partial), to.value)
