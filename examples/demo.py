"""From photographs to multi-scale maps: extract, look at the table, look at the picture.

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
    print(f"\nThe maps are in {FOLDER / 'maps'}, the picture of them is {FOLDER / 'maps.png'}.")


def choose_weights() -> tuple[str, ...]:
    """Options for published weights where they can be had, for seeded random ones where not."""
    logging.set_verbosity_error()
    print("Looking for published weights …", flush=True)
    try:
        hub_weights(f"timm/{MODEL}.lamb_in1k")
    except featx.WeightsNotFoundError:
        print("The Hub cannot be reached: the weights below are random ones, seed 0, and the maps mean nothing.")
        return "--random-weights", "0"
    return ("--pretrained",)


def run(*arguments: str | Path) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ featx {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "featx", *words], check=True)


if __name__ == "__main__":
    main()
