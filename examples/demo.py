"""Extract multi-scale maps of photographs, print the table of levels, and draw the maps of two trained networks.

make demo
"""

import shutil
import subprocess
import sys
from pathlib import Path

import skimage
from trained_weights import dinov2_small, efficientnet_lite0

MODEL, VIT = "tf_efficientnet_lite0", "vit_small_patch14_dinov2"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg")
FOLDER = Path("demo")
LAST = f"""
Look at {FOLDER}/maps.png ({MODEL}) and {FOLDER}/dinov2.png: cells of one color have similar features.
The maps are in {FOLDER}/maps; featx.FeatureDataset reads them.

Try next:
  .venv/bin/featx list 'resnet*'
  .venv/bin/featx show YOUR_PHOTO.jpg --model resnet50 --out maps.png
  .venv/bin/featx extract YOUR_FOLDER --model resnet50 --out vectors --pooling mean"""


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    photographs = FOLDER / "photographs"
    photographs.mkdir(parents=True)
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, photographs)
    print("The weights are trained ones that two installed packages bring along.", flush=True)
    weights = Path(shutil.copy(efficientnet_lite0(), FOLDER / "efficientnet_lite0.pth"))
    vit_weights = dinov2_small(FOLDER / "dinov2.safetensors")
    model, vit = (MODEL, "--checkpoint-path", weights), (VIT, "--checkpoint-path", vit_weights)
    run("info", MODEL)
    run("extract", photographs, "--model", *model, "--out", FOLDER / "maps")
    run("show", photographs / PHOTOGRAPHS[0], "--model", *model, "--out", FOLDER / "maps.png")
    levels = ("--out-indices", "5,11", "--size", "518")
    run("show", photographs / PHOTOGRAPHS[0], "--model", *vit, *levels, "--out", FOLDER / "dinov2.png")
    print(LAST)


def run(*arguments: str | Path) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ featx {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "featx", *words], check=True)


if __name__ == "__main__":
    main()
