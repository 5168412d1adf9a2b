"""Create the figures of docs/pictures.md by running the commands on the page.

Run `python docs/pictures.py`. The photographs are scikit-image's; the weights are those of examples/trained_weights.py.
"""

import contextlib
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import skimage
import typer
from PIL import Image

from featx.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from trained_weights import dinov2_small, efficientnet_lite0

PAGE = Path(__file__).with_suffix(".md")
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
WIDTH = 1000  # pixels of a figure on the page


def commands(page: str) -> list[list[str]]:
    """Return the arguments of every command on the page that draws a PNG file from a weights file."""
    lines = re.findall(r"^featx (show .*--checkpoint-path .*\.png)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def write_figure(arguments: list[str], work: Path, folder: Path) -> Path:
    """Run one command on its photograph, and write its figure to the folder, resized and with 256 colors."""
    _, photograph, *options, name = arguments
    shutil.copy(PHOTOGRAPHS / photograph, work)
    typer.main.get_command(app).main(
        ["show", str(work / photograph), *options, str(work / name)], standalone_mode=False
    )
    with Image.open(work / name) as figure:
        height = round(figure.height * WIDTH / figure.width)
        resized = figure.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    # maximum coverage keeps rare colors, such as the ends of a color bar; k-means then refines the palette
    resized.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(folder / name, optimize=True)
    return folder / name


def main() -> None:
    folder = PAGE.resolve().with_suffix("")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        shutil.copy(efficientnet_lite0(), "efficientnet_lite0.pth")
        dinov2_small(Path("dinov2.safetensors"))
        for arguments in commands(PAGE.read_text(encoding="utf-8")):
            write_figure(arguments, Path(work), folder)


if __name__ == "__main__":
    main()
