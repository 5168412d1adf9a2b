"""Extract multi-scale maps of photographs, print the table of levels, and draw the maps.

make demo
"""

import shutil
import subprocess
import sys
from pathlib import Path

import skimage
from huggingface_hub.utils import logging

import featx
from featx.weights.hub import hub_weights

MODEL = "mobilenetv3_small_100"
PHOTOGRAPHS = ("coffee.png", "chelsea.png", "rocket.jpg")
FOLDER = Path("demo")


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    photographs = FOLDER / "photographs"
    photographs.mkdir(parents=True)
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, photographs)
    weights = choose_weights()
    run("info", MODEL)
    run("extract", photographs, "--model", MODEL, "--out", FOLDER / "maps", *weights)
    run("show", photographs / PHOTOGRAPHS[0], "--model", MODEL, "--out", FOLDER / "maps.png", *weights)
    print(f"\nThe maps are in {FOLDER / 'maps'}, the figure is {FOLDER / 'maps.png'}.")


def choose_weights() -> tuple[str, ...]:
    """Return the options for published weights, or for seeded random ones if the Hub cannot be reached."""
    logging.set_verbosity_error()
    print("Looking for published weights …", flush=True)
    try:
        hub_weights(f"timm/{MODEL}.lamb_in1k")
    except featx.WeightsNotFoundError:
        print("The Hub cannot be reached: the weights below are random (seed 0), so the maps are meaningless.")
        return "--random-weights", "0"
    return ("--pretrained",)


def run(*arguments: str | Path) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ featx {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "featx", *words], check=True)


if __name__ == "__main__":
    main()
