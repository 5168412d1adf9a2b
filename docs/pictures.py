"""Makes the pictures of docs/pictures.md by running the commands that the page shows.

Run as `python docs/pictures.py`. Photographs are scikit-image's, weights are random.
"""

import re
import shlex
import shutil
import tempfile
from pathlib import Path

import skimage
import typer
from PIL import Image

from featx.cli import app

PAGE = Path(__file__).with_suffix(".md")
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
WIDTH = 1000  # of a picture on the page


def commands(page: str) -> list[list[str]]:
    """The words after `featx` of every command that writes a picture."""
    lines = re.findall(r"^featx (show .*\.png)$", page, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def make(words: list[str], work: Path, folder: Path) -> Path:
    """Run one command on its photograph, and keep its picture small."""
    _, photograph, *options, name = words
    shutil.copy(PHOTOGRAPHS / photograph, work)
    typer.main.get_command(app).main(
        ["show", str(work / photograph), *options, str(work / name)], standalone_mode=False
    )
    with Image.open(work / name) as drawn:
        height = round(drawn.height * WIDTH / drawn.width)
        small = drawn.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    # rare colours such as the ends of a bar are kept, then all moved to where most pixels are
    small.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(folder / name, optimize=True)
    return folder / name


def main() -> None:
    folder = PAGE.with_suffix("")
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for words in commands(PAGE.read_text(encoding="utf-8")):
            make(words, Path(work), folder)


if __name__ == "__main__":
    main()
