"""Create the figures of docs/pictures.md, docs/similarity.md and docs/tiles.md, by running the commands on these pages.

Run `python docs/pictures.py`. The photographs are scikit-image's; the weights are those of examples/trained_weights.py.
"""

import contextlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import skimage
import torch
import typer
from PIL import Image

import featx
from featx.cli import app
from featx.viz import maps_grid, save_figure, shared_bases

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from trained_weights import dinov2_small, efficientnet_lite0

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path(__file__).resolve().with_suffix(".md")
SIMILARITY = PAGE.with_stem("similarity")
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
WIDTH = 1000  # pixels of a figure on the page


def commands(page: str) -> list[list[str]]:
    """Return the arguments of every command on the page that draws a PNG file from a weights file."""
    lines = re.findall(r"^featx (show .*--checkpoint-path .*\.png)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def examples(page: str) -> list[list[str]]:
    """Return the path and the arguments of every example on the page."""
    return [shlex.split(line) for line in re.findall(r"^\.venv/bin/python (examples/.*)$", page, re.MULTILINE)]


def write_figure(arguments: list[str], work: Path, folder: Path) -> Path:
    """Run one command on its photograph, and write its figure to the folder, resized and with 256 colors."""
    _, photograph, *options, name = arguments
    shutil.copy(PHOTOGRAPHS / photograph, work)
    typer.main.get_command(app).main(
        ["show", str(work / photograph), *options, str(work / name)], standalone_mode=False
    )
    write_small(work / name, folder / name)
    return folder / name


def write_small(source: Path, target: Path) -> None:
    """Write a figure resized and with 256 colors."""
    with Image.open(source) as figure:
        height = round(figure.height * WIDTH / figure.width)
        resized = figure.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    # maximum coverage keeps rare colors, such as the ends of a color bar; k-means then refines the palette
    resized.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(target, optimize=True)


@torch.no_grad()
def draw_tiles(path: Path) -> None:
    """Draw the map of a photograph, and the map that is blended of tiles, in the same colors."""
    vit = featx.create_model(
        "vit_small_patch14_dinov2", features_only=True, out_indices=[-1], checkpoint_path="dinov2.safetensors"
    ).eval()
    photograph = Image.open(PHOTOGRAPHS / "coffee.png").convert("RGB")
    x = featx.transform_whole(vit, size=504)(photograph)[None]
    whole, tiled = vit(x), featx.tiled(vit, tile=252)(x)
    (level,) = vit.feature_info
    levels = featx.Levels([replace(level, name="whole image"), replace(level, name="tiles of 252 pixels, blended")])
    figure = maps_grid(photograph, [*whole, *tiled], levels, basis=shared_bases([whole]) * 2)
    save_figure(figure, path)


def main() -> None:
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        shutil.copy(efficientnet_lite0(), "efficientnet_lite0.pth")
        dinov2_small(Path("dinov2.safetensors"))
        for arguments in commands(PAGE.read_text(encoding="utf-8")):
            write_figure(arguments, Path(work), folder)
        draw_tiles(Path("tiles.png"))
        write_small(Path("tiles.png"), folder / "tiles.png")
        for words in examples(SIMILARITY.read_text(encoding="utf-8")):
            script = ROOT / words[0]
            subprocess.run([sys.executable, script, *words[1:]], check=True)
            write_small(Path("demo", f"{script.stem}.png"), folder / f"{script.stem}.png")


if __name__ == "__main__":
    main()
