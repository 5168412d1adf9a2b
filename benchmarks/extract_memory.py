"""Peak memory of an extraction by number of images: it stays constant.

Images (32 pixels) and the model (mobilenetv3_small_050) are small, so that growth with the number of images would show.

python benchmarks/extract_memory.py [--images 5000 50000]
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from subprocess_runs import machine

SCENES = 100  # distinct images; the others are links to these
CODE = """
import resource, sys, time, featx, torch
model = featx.create_model("mobilenetv3_small_050", features_only=True, out_indices=[-1]).eval()
begin = time.perf_counter()
summary = featx.extract(sys.argv[1], model, sys.argv[2], size=32)
assert not summary.failed
print(summary.written, time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000])
    options = parser.parse_args()
    print(f"{machine().replace('one thread used', 'all of them used')}\n")
    print("| images | images per second | peak memory, MiB | relative to the first |\n|---|---|---|---|")
    first = None
    for count in options.images:
        written, seconds, peak = extract(count)
        first = first or peak
        print(f"| {written:,.0f} | {written / seconds:,.0f} | {peak:.0f} | {peak / first:.3f} |", flush=True)


def extract(count: int) -> tuple[float, float, float]:
    """Run an extraction in a new process; return the number of written images, the seconds and the peak MiB."""
    with tempfile.TemporaryDirectory() as folder:
        photographs = write_photographs(Path(folder) / "in", count)
        command = [sys.executable, "-c", CODE, str(photographs), str(Path(folder) / "out")]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        written, seconds, peak = map(float, process.stdout.split())
        return written, seconds, peak


def write_photographs(folder: Path, count: int) -> Path:
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(SCENES):
        pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg")
    for number in range(SCENES, count):
        os.link(folder / f"{number % SCENES:06d}.jpg", folder / f"{number:06d}.jpg")
    return folder


if __name__ == "__main__":
    main()
