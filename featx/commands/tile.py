"""featx tile: write the maps of one image that is larger than memory."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

import featx

from ..whole_files import alone, local, new_file_or_folder, require_new
from .options import CheckpointPath, Model, OutIndices, Pretrained, RandomWeights, build, out, parse_indices

Image = Annotated[Path, typer.Argument(help="A TIFF, GeoTIFF, PNG, JPEG or JPEG 2000 file of any size.")]
Folder = Annotated[Path, typer.Option("--out", help="New folder: a .npy file per level, and maps.json.")]
Tile = Annotated[int | None, typer.Option("--tile", min=1, help="Side of a tile in pixels; by default 512 or more.")]
Overlap = Annotated[
    str, typer.Option(metavar="auto|PIXELS", help="Overlap of tiles; auto makes them exact where the model allows it.")
]
Bands = Annotated[
    str | None, typer.Option(metavar="I,J,…", help="Bands of the file, from 1, in the order of the channels.")
]
Scale = Annotated[float | None, typer.Option(help="Pixel value that becomes 1; by default 255 or, for 16 bits, 65535.")]


def tile(
    image: Image,
    model: Model,
    folder: Folder,
    out_indices: OutIndices = None,
    tile: Tile = None,
    overlap: Overlap = "auto",
    bands: Bands = None,
    scale: Scale = None,
    pretrained: Pretrained = False,
    checkpoint_path: CheckpointPath = None,
    random_weights: RandomWeights = None,
) -> None:
    """Write the maps of one image of any size, tile by tile, in bounded memory.

    Maps keep the coordinates of a georeferenced image: maps.json has the transform of each level.
    """
    from ..tiling import RasterWindows

    folder = local(folder)
    require_new(folder)
    extractor, weights = build(model, out_indices, pretrained, checkpoint_path, random_weights)
    config = extractor.data_config or featx.DataConfig()
    windows = RasterWindows(image, config, bands=parse_indices(bands, "--bands"), scale=scale)
    tiled = featx.tiled(extractor, tile, _overlap(overlap))
    with alone(folder), new_file_or_folder(folder) as part:
        maps = tiled(windows, part)
        levels = [
            {"file": f"level_{i}.npy", **asdict(level), "transform": windows.transform_of(level.reduction)}
            for i, level in enumerate(extractor.feature_info)
        ]
        facts = {"image": str(image), "size": windows.size, "model": model, "weights": weights}
        facts |= {"is_exact": tiled.is_exact, "crs": windows.crs, "levels": levels}
        (part / "maps.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    stitched = "equal to those of the whole image" if tiled.is_exact else "blended where tiles overlap"
    out.print(f"{folder}: maps of {image}, {stitched}", soft_wrap=True)
    for level, map_ in zip(extractor.feature_info, maps, strict=True):
        out.print(f"  {level.name}: {' × '.join(map(str, map_.shape[1:]))}, {level.reduction} pixels per cell")


def _overlap(text: str) -> int | Literal["auto"]:
    """ "auto", or a number of pixels; ArgumentError for another text."""
    if text == "auto":
        return "auto"
    if text.isdecimal():
        return int(text)
    raise featx.ArgumentError(f"--overlap {text}: expected auto or a number of pixels, such as 64")
