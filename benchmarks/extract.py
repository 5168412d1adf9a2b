"""Throughput of extraction compared with common loops, on the same photographs and machine, and with its limits.

JPEGs of two sizes, made from the photographs of scikit-image; the deepest map of each is stored in float32. Every
candidate runs in new processes, interleaved. The table has medians, and the difference of the first images' maps from
those of the plain loop, relative to the largest value. The limits are the model alone, on pixels in memory, and
decoding alone, each on all cores; the limit of the sum, which both together cannot exceed, is that of an otherwise idle
machine. Throughput is that of the steady state, from an eighth of the images to the last one. The seconds before and
after it are listed separately: scanning the inputs, preparing the runtime, hashing the weights, writing the index. The
runtime is in the cache from an earlier run. The loops are as fast on fewer images: they process half of them,
transformers' pipeline an eighth.

python benchmarks/extract.py [--model resnet50] [--images 1024] [--repeats 1] [--timm-inference SCRIPT]

SCRIPT, or the environment variable TIMM_INFERENCE, is `inference.py` of timm's repository (not in its package).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
from subprocess_runs import machine

import featx
from featx.bulk.config import usable_cores

SIZES = {"500×375": (500, 375), "1920×1080": (1920, 1080)}
BATCH, COMPARED = 16, 16
TIMM = """
import timm, torch
torch.manual_seed(0)
model = timm.create_model(NAME, features_only=True, out_indices=[-1]).eval()
model.load_state_dict(load_file(WEIGHTS), strict=False)
"""
TRANSFORM = """
from timm.data import create_transform, resolve_data_config
prepare = create_transform(**resolve_data_config({}, model=model))
"""
FEATX = """
import featx, featx.bulk
from featx.runtime.allocator import keep_freed_memory
keep_freed_memory()
model = featx.create_model(NAME, features_only=True, out_indices=[-1], checkpoint_path=WEIGHTS).eval()
"""
# With spawned workers a DataLoader's dataset must be importable; these workers fork, the default on Linux.
DATASET = """
from PIL import Image
class JpegDataset(torch.utils.data.Dataset):
    def __len__(self): return len(FILES)
    def __getitem__(self, i): return prepare(Image.open(FILES[i]).convert("RGB"))
"""
START = """
import glob, os, sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
FILES = sorted(glob.glob(FOLDER + '/*.jpg'))[:COUNT]
"""
SAVE = "np.save(OUT + f'/{number:06d}.npy', maps[0].numpy())"

TRANSFORMERS = "transformers' pipeline, its own ResNet-50, deepest map only"
PLAIN = "plain loop: PIL + timm, one image at a time"
LOADER = "DataLoader (2 workers) + timm"
FEWER = {TRANSFORMERS: 8, PLAIN: 2, LOADER: 2}  # these process only 1/8, 1/2 and 1/2 of the images
MODEL_LIMIT, DECODING_LIMIT = "limit: the model alone (auto)", "limit: decoding alone"


def featx_with(**options: object) -> str:
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return f"""
{FEATX}
begin()
report = lambda progress: tick(progress.written)
featx.extract(FOLDER, model, OUT + '/maps', batch_size={BATCH}, progress=report{arguments})
"""


CANDIDATES = {
    PLAIN: f"""
{TIMM}
{TRANSFORM}
import numpy as np; from PIL import Image
begin()
with torch.inference_mode():
    for number, file in enumerate(FILES):
        maps = model(prepare(Image.open(file).convert('RGB'))[None])
        {SAVE}
        tick(number + 1)
""",
    LOADER: f"""
{TIMM}
{TRANSFORM}
{DATASET}
import numpy as np
begin()
with torch.inference_mode():
    for number, x in enumerate(torch.utils.data.DataLoader(JpegDataset(), batch_size={BATCH}, num_workers=2)):
        maps = model(x)
        {SAVE}
        tick((number + 1) * {BATCH})
""",
    TRANSFORMERS: f"""
import torch, numpy as np
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel, pipeline
model = ResNetModel(ResNetConfig()).eval()
extract = pipeline('image-feature-extraction', model=model, image_processor=ConvNextImageProcessor())
begin()
for number, found in enumerate(extract((file for file in FILES), batch_size={BATCH}, return_tensors=True)):
    np.save(OUT + f'/{{number:06d}}.npy', found.numpy())
    tick(number + 1)
""",
    "featx": featx_with(),
    "featx, auto": featx_with(runtime="auto"),
    "featx, auto, scaled decode": featx_with(runtime="auto", scaled_decode=True),
    MODEL_LIMIT: f"""
import numpy as np
from concurrent.futures import ThreadPoolExecutor
{FEATX}
from featx.bulk.inference import InferenceModel; from featx.bulk.config import Recipe, Resources, usable_cores
cores = usable_cores()
torch.set_num_threads(cores)
inference = InferenceModel(model, Recipe(runtime='auto'), Resources({BATCH}, 'cpu', streams=cores))
torch.set_num_threads(1)
images = [np.random.default_rng(i).integers(0, 256, (*model.data_config.size, 3), np.uint8) for i in range({BATCH})]
inference(images)
begin()
with ThreadPoolExecutor(cores) as pool:
    for number, _ in enumerate(pool.map(lambda _: inference(images) and None, range(len(FILES) // {BATCH}))):
        tick((number + 1) * {BATCH})
""",
    DECODING_LIMIT: """
import featx
from featx.bulk import find_items, Recipe
from featx.bulk.decoder import decoder_for
from featx.bulk.config import usable_cores
from concurrent.futures import ThreadPoolExecutor
decoder = decoder_for(featx.create_model(NAME, features_only=True).eval(), find_items(FOLDER), Recipe())
decoder(0)
begin()
with ThreadPoolExecutor(usable_cores()) as pool:
    for number, _ in enumerate(pool.map(lambda i: decoder(i) and None, range(len(FILES)))):
        tick(number + 1)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--timm-inference", default=os.environ.get("TIMM_INFERENCE"))
    options = parser.parse_args()
    print(machine().replace("one thread used", "all of them used"))
    print(f"\n{options.model}, {options.images} JPEGs a size, batches of {BATCH}:")
    print("steady-state images per second (seconds before and after; CPU seconds per image; difference of maps)\n")
    candidates = {**CANDIDATES, **inference(options.timm_inference)}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(options.model, Path(folder))
        photographs = {
            name: write_photographs(Path(folder) / name, size, options.images) for name, size in SIZES.items()
        }
        runs: dict[tuple[str, str], list[ExtractionRun]] = {}
        for _ in range(options.repeats):
            for candidate, code in candidates.items():
                for size, images in photographs.items():
                    count = images_of(candidate, options.images)
                    runs.setdefault((candidate, size), []).append(run(code, options.model, images, count, weights))
                    print(candidate, size, runs[candidate, size][-1].wall, file=sys.stderr, flush=True)
        print_table(candidates, runs, options.images)


def inference(script: str | None) -> dict[str, str]:
    """Return the code that runs timm's script, if given, with the same batches and weights."""
    if script is None:
        return {}
    arguments = f"{script!r}, '--data-dir', FOLDER, '--model', NAME, '--checkpoint', WEIGHTS, '--batch-size', '{BATCH}'"
    arguments += ", '--workers', '2', '--device', 'cpu', '--results-dir', OUT, '--no-console-results'"
    run = f"import subprocess\nbegin()\nsubprocess.run([sys.executable, {arguments}], check=True)"
    return {"timm's inference.py, with its start, classes only": run}


@dataclass(frozen=True, slots=True)
class ExtractionRun:
    """One run of a candidate.

    Attributes:
        wall: seconds of wall-clock time.
        busy: CPU seconds, children included.
        rate: throughput in the steady state, in images per second.
        cores: average number of cores in use in the steady state.
        maps: the deepest maps of the first images.
    """

    wall: float
    busy: float
    rate: float
    cores: float
    maps: np.ndarray | None


def print_table(candidates: Iterable[str], runs: dict[tuple[str, str], list[ExtractionRun]], images: int) -> None:
    print(f"| | {' | '.join(SIZES)} |\n|---|{'---|' * len(SIZES)}")
    rates: dict[tuple[str, str], float] = {}
    for candidate in candidates:
        cells = []
        for size in SIZES:
            measured = runs[candidate, size]
            rate, wall, busy = (median(getattr(run, key) for run in measured) for key in ("rate", "wall", "busy"))
            count = images_of(candidate, images)
            rates[candidate, size] = rate
            error = difference(measured[0].maps, runs[PLAIN, size][0].maps)
            cells.append(f"{rate:.1f} ({max(wall - count / rate, 0.0):.1f}; {busy / count:.3f}{error})")
        print(f"| {candidate} | {' | '.join(cells)} |")
    limits = [[rates[limit, size] for limit in (MODEL_LIMIT, DECODING_LIMIT)] for size in SIZES]
    print(f"| limit: the smaller of both | {' | '.join(f'{min(pair):.1f}' for pair in limits)} |")
    both = {size: 1 / sum(1 / limit for limit in pair) for size, pair in zip(SIZES, limits, strict=True)}
    print(f"| limit: their sum | {' | '.join(f'{rate:.1f}' for rate in both.values())} |")
    shares = (f"{rates['featx, auto', size] / rate:.0%}" for size, rate in both.items())
    print(f"| featx, auto, of their sum | {' | '.join(shares)} |")
    used = (median(run.cores for run in runs["featx, auto", size]) / usable_cores() for size in SIZES)
    print(f"| featx, auto, cores in use | {' | '.join(f'{share:.0%}' for share in used)} |")


def images_of(candidate: str, images: int) -> int:
    """Return the number of images that the candidate processes."""
    return images // FEWER.get(candidate, 1)


def difference(maps: np.ndarray | None, reference: np.ndarray | None) -> str:
    if maps is None or reference is None or maps.shape != reference.shape:
        return ""
    return f"; {np.abs(maps - reference).max() / np.abs(reference).max():.0e}"


def run(code: str, name: str, images: Path, count: int, weights: Path) -> ExtractionRun:
    """Run a candidate's code in a new process and measure from `begin()` to the end."""
    with tempfile.TemporaryDirectory() as out:
        facts = f"NAME, FOLDER, OUT, WEIGHTS, COUNT = {name!r}, {str(images)!r}, {out!r}, {str(weights)!r}, {count}"
        clock = (
            "def now(): t = os.times(); return time.perf_counter(), sum(t[:4])\n"
            "def begin(): global START; START = now()\n"
            "TICKS = [(0, 0.0, 0.0)]\n"
            "def tick(done): TICKS.append((done, *(b - a for a, b in zip(START, now()))))\n"
        )
        end = "\nimport json; print(json.dumps([*(b - a for a, b in zip(START, now())), TICKS]))"
        text = f"{facts}\n{START}\n{clock}\nif __name__ == '__main__':\n" + "\n".join(
            f"    {line}" for line in (code + end).splitlines()
        )
        script = Path(out) / "candidate.py"
        script.write_text(text)
        process = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=os.environ)
        if process.returncode:
            raise SystemExit(process.stderr)
        wall, busy, ticks = json.loads(process.stdout.splitlines()[-1])
        return ExtractionRun(wall, busy, *steady([*ticks, (count, wall, busy)], count), first_maps(Path(out)))


def steady(ticks: list[tuple[int, float, float]], count: int) -> tuple[float, float]:
    """Return images per second and cores in use, from an eighth of the images to the last one.

    Args:
        ticks: (images, wall seconds, CPU seconds) at the start, at each progress report, and at the end. Without
            progress reports, the whole run counts.
        count: number of images.
    """
    (*reports, end), begin = ticks[1:], ticks[0]
    first = next((tick for tick in reports if tick[0] >= count / 8), begin)
    last = next((tick for tick in reports if tick[0] == reports[-1][0]), end)
    images, wall, busy = (b - a for a, b in zip(first, last, strict=True))
    return images / wall, busy / wall


def first_maps(out: Path) -> np.ndarray | None:
    """Load the deepest maps of the first images that a candidate stored, in the order of file names."""
    if (out / "maps").exists():
        stored = featx.FeatureDataset(out / "maps")
        return np.stack([next(iter(stored[row].maps.values())).numpy() for row in range(COMPARED)])
    files = sorted(out.glob("*.npy"))
    arrays = [np.load(file) for file in files[:COMPARED]]
    return np.concatenate(arrays)[:COMPARED] if arrays else None


def write_weights(name: str, folder: Path) -> Path:
    """Write timm's random weights of seed 0, so that all candidates have the same model."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, features_only=False).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_photographs(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Write photographs of scikit-image in that size, each shifted by a random number of pixels."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    scenes = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.immunohistochemistry()]
    pictures = [Image.fromarray(scene).resize(size) for scene in scenes]
    generator = np.random.default_rng(0)
    for number, picture in zip(range(count), cycle(pictures), strict=False):
        rolled = np.roll(np.asarray(picture), int(generator.integers(0, 200)), axis=1)
        Image.fromarray(rolled).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
