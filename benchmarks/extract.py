"""Extraction beside the loops that people write, on the same photographs, weights and machine, and beside its limits.

JPEGs of two sizes, made from the photographs of scikit-image. Every contestant runs in a process of its own, taking
turns; what is told is the median. The limits are the model alone, on pixels in memory, and decoding alone.

python benchmarks/extract.py [--model resnet50] [--images 512] [--repeats 3]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path
from statistics import median

import numpy as np
from fresh import machine

SIZES = {"500×375": (500, 375), "1920×1080": (1920, 1080)}
BATCH = 16
TIMM = "import timm, torch; torch.manual_seed(0); model = timm.create_model(NAME, features_only=True).eval()"
TRANSFORM = """
from timm.data import create_transform, resolve_data_config
prepare = create_transform(**resolve_data_config({}, model=model))
"""
FEATX = "import featx; model = featx.create_model(NAME, features_only=True, checkpoint_path=WEIGHTS).eval()"
# A DataLoader's data set must be importable where processes are spawned; these fork, as on Linux by default.
DATASET = """
from PIL import Image
class Files(torch.utils.data.Dataset):
    def __len__(self): return len(FILES)
    def __getitem__(self, i): return prepare(Image.open(FILES[i]).convert("RGB"))
"""
START = "import sys, time, glob, os; from pathlib import Path; FILES = sorted(glob.glob(FOLDER + '/*.jpg'))"
SAVE = "np.savez(OUT + f'/{number}.npz', *[map_.numpy() for map_ in maps])"

CONTESTANTS = {
    "plain loop: PIL + timm, one image at a time": f"""
{TIMM}
{TRANSFORM}
import numpy as np; from PIL import Image
begin()
with torch.inference_mode():
    for number, file in enumerate(FILES):
        maps = model(prepare(Image.open(file).convert('RGB'))[None])
        {SAVE}
""",
    "DataLoader (2 workers) + timm": f"""
{TIMM}
{TRANSFORM}
{DATASET}
import numpy as np
begin()
with torch.inference_mode():
    for number, x in enumerate(torch.utils.data.DataLoader(Files(), batch_size={BATCH}, num_workers=2)):
        maps = model(x)
        {SAVE}
""",
    "transformers' pipeline, its own ResNet-50, deepest map only": f"""
import torch, numpy as np
from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel, pipeline
model = ResNetModel(ResNetConfig()).eval()
extract = pipeline('image-feature-extraction', model=model, image_processor=ConvNextImageProcessor())
begin()
for number, found in enumerate(extract(iter(FILES), batch_size={BATCH}, return_tensors=True)):
    np.save(OUT + f'/{{number}}.npy', found.numpy())
""",
    "featx": f"""
{FEATX}
import featx.bulk; from featx.bulk.allocator import keep_freed_memory
keep_freed_memory(); begin()
featx.extract(FOLDER, model, OUT + '/maps', batch_size={BATCH})
""",
    "featx, processes": f"""
{FEATX}
import featx.bulk; from featx.bulk.allocator import keep_freed_memory
keep_freed_memory(); begin()
featx.extract(FOLDER, model, OUT + '/maps', batch_size={BATCH}, decoders='processes')
""",
    "featx, runtime onednn": f"""
{FEATX}
import featx.bulk; from featx.bulk.allocator import keep_freed_memory
keep_freed_memory(); begin()
featx.extract(FOLDER, model, OUT + '/maps', batch_size={BATCH}, runtime='onednn')
""",
    "featx, runtime onednn, scaled decode": f"""
{FEATX}
import featx.bulk; from featx.bulk.allocator import keep_freed_memory
keep_freed_memory(); begin()
featx.extract(FOLDER, model, OUT + '/maps', batch_size={BATCH}, runtime='onednn', scaled_decode=True)
""",
    "limit: model alone (onednn, 2 streams)": """
import torch, numpy as np, featx
from featx.bulk.allocator import keep_freed_memory; keep_freed_memory()
from featx.bulk.model import Model; from featx.bulk.recipe import Recipe
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(1)
made = Model(featx.create_model(NAME, features_only=True, checkpoint_path=WEIGHTS).eval(), Recipe(runtime='onednn'),
             'cpu', 16)
images = [np.zeros((224, 224, 3), np.uint8)] * 16
made(images)
begin()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda _: made(images) and None, range(len(FILES) // 16)))
""",
    "limit: model alone (plain, 2 streams)": """
import torch, numpy as np, featx
from featx.bulk.allocator import keep_freed_memory; keep_freed_memory()
from featx.bulk.model import Model; from featx.bulk.recipe import Recipe
from concurrent.futures import ThreadPoolExecutor
torch.set_num_threads(1)
made = Model(featx.create_model(NAME, features_only=True, checkpoint_path=WEIGHTS).eval(), Recipe(), 'cpu', 16)
images = [np.zeros((224, 224, 3), np.uint8)] * 16
made(images)
begin()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda _: made(images) and None, range(len(FILES) // 16)))
""",
    "limit: decoding alone (2 threads)": """
import featx
from featx.bulk import find_items, Recipe
from featx.bulk.decode import decoder_for
from concurrent.futures import ThreadPoolExecutor
decoder = decoder_for(featx.create_model(NAME, features_only=True).eval(), find_items(FOLDER), Recipe())
decoder(0)
begin()
with ThreadPoolExecutor(2) as pool:
    list(pool.map(lambda i: decoder(i) and None, range(len(FILES))))
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(machine().replace("one thread used", "all of them used"))
    print(f"\n{options.model}, {options.images} JPEGs a size, batches of {BATCH}:")
    print("images a second (seconds of processor an image)\n")
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(options.model, Path(folder))
        photographs = {
            name: write_photographs(Path(folder) / name, size, options.images) for name, size in SIZES.items()
        }
        rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.repeats):
            for contestant, code in CONTESTANTS.items():
                for size, images in photographs.items():
                    took = run(code, options.model, images, weights)
                    rates.setdefault((contestant, size), []).append(took)
        print_table(rates, options.images)


def print_table(rates: dict[tuple[str, str], list[tuple[float, float]]], images: int) -> None:
    print(f"| | {' | '.join(SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for contestant in CONTESTANTS:
        cells = []
        for size in SIZES:
            wall, busy = (median(column) for column in zip(*rates[contestant, size], strict=True))
            cells.append(f"{images / wall:.1f} ({busy / images:.3f})")
        print(f"| {contestant} | {' | '.join(cells)} |")


def run(code: str, name: str, images: Path, weights: Path) -> tuple[float, float]:
    """Seconds by the clock, and of the processor with those of children, from `begin()` to the end."""
    with tempfile.TemporaryDirectory() as out:
        facts = f"NAME, FOLDER, OUT, WEIGHTS = {name!r}, {str(images)!r}, {out!r}, {str(weights)!r}"
        clock = (
            "def now(): t = os.times(); return time.perf_counter(), sum(t[:4])\n"
            "def begin(): global START; START = now()\n"
        )
        end = "\nimport json; print(json.dumps([b - a for a, b in zip(START, now())]))"
        text = f"{facts}\n{START}\n{clock}\nif __name__ == '__main__':\n" + "\n".join(
            f"    {line}" for line in (code + end).splitlines()
        )
        script = Path(out) / "contestant.py"
        script.write_text(text)
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            raise SystemExit(done.stderr)
        wall, busy = json.loads(done.stdout.splitlines()[-1])
        return wall, busy


def write_weights(name: str, folder: Path) -> Path:
    """The values timm draws from seed 0, so that all have the same model."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, features_only=False).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_photographs(folder: Path, size: tuple[int, int], count: int) -> Path:
    """Photographs of scikit-image in that size, each a little different."""
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
