"""Maps, forwards, compiled forwards and extraction on a CUDA GPU, timm's and featx's, within ten minutes.

TensorFloat-32 is off. Maps: of every family, in float32 on the device against float64 on the CPU, relative to the
largest value of a level, within 1e-4. Forwards: in inference_mode, medians of turns that the ways take one after
another, timed by events of the GPU; ratios to timm's eager float32, above 1 is faster. bf16 and fp16 are channels last;
"optimize" has its norms folded; a CUDA graph replays the kernels of one forward without Python in between. Extraction:
folders of JPEGs to the deepest maps in float32 on disk, by `featx.extract`, and by timm behind a DataLoader with pinned
memory, in images a second. Every part has a share of the minutes, and ends behind the model with which it is spent.

python benchmarks/gpu.py [--device cuda] [--minutes 9] [NAME ...]

On the CPU it runs two small models, without CUDA graphs, to see that it works.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from fresh import machine
from torch import Tensor, nn
from turns import FAMILIES

import featx

TOLERANCE = 1e-4  # in float32, whose sums are taken in other orders on other devices
UNTIMED = 3  # first turns, in which kernels are chosen and loaded
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: where, of which models, how often, and on how many JPEGs.

    proven: models whose maps are compared. backend: of torch.compile.
    """

    device: str
    names: tuple[str, ...]
    proven: tuple[str, ...]
    batches: tuple[int, ...]
    repeats: int
    images: int
    workers: int
    backend: str

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


OTHERS = ("mobilenetv2_100", "regnety_008", "convnextv2_nano", "vit_tiny_r_s16_p8_224")
ON_GPU = Plan("cuda", FAMILIES, (*FAMILIES, *OTHERS), (1, 64), 15, 4096, 12, "inductor")
SMALL = ("test_efficientnet", "mobilenetv3_small_050")
ON_CPU = Plan("cpu", SMALL, SMALL, (2,), 1, 4, 0, "eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9)
    options = parser.parse_args()
    plan = ON_GPU if options.device == "cuda" else ON_CPU
    if options.names:
        plan = replace(plan, names=tuple(options.names), proven=tuple(options.names))
    if plan.on_gpu and not torch.cuda.is_available():
        print("Not run: PyTorch saw no GPU.")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if plan.on_gpu else "no GPU: a trial"
    print(f"{machine().replace('one thread used', 'all of them used')}; {card}", flush=True)
    sys.exit(0 if run(plan, options.minutes * 60) else "maps differ by more than the tolerance")


def run(plan: Plan, seconds: float) -> bool:
    """All parts, each with its share of the seconds; whether the maps are right."""
    right = prove(plan, perf_counter() + 0.15 * seconds)
    time_forwards(plan, perf_counter() + 0.4 * seconds)
    time_extraction(plan)
    time_compiled(plan, perf_counter() + 0.25 * seconds)
    return right


def within(names: tuple[str, ...], end: float) -> Iterator[str]:
    """Names until that time has come; then it says which are left out."""
    for number, name in enumerate(names):
        if perf_counter() > end:
            print(f"\nLeft out, because the time is up: {', '.join(names[number:])}.", flush=True)
            return
        yield name


def title(text: str, *columns: str) -> None:
    print(f"\n{text}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def prove(plan: Plan, end: float) -> bool:
    """Whether the maps of all models that the time allows are those of the CPU."""
    title("Maps, largest difference relative to the largest value of the level", "model", "levels", "difference")
    worst = 0.0
    for name in within(plan.proven, end):
        model = featx.create_model(name, features_only=True).eval()
        x = pictures(model, 2)
        with torch.inference_mode():
            expected = deepcopy(model).double()(x.double())
            found = model.to(plan.device)(x.to(plan.device))
        differences = [largest(one.cpu().double(), other) for one, other in zip(found, expected, strict=True)]
        worst = max([worst, *differences])
        print(f"| {name} | {len(found)} | {max(differences):.1e} |", flush=True)
    return worst <= TOLERANCE


def largest(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where something is not finite."""
    difference = float((found - expected).abs().max() / expected.abs().max())
    return difference if np.isfinite(difference) else float("inf")


def pictures(model: featx.FeatureExtractWrapper, batch: int) -> Tensor:
    """Random images of the model's own size."""
    assert model.data_config is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *model.data_config.size, generator=generator)


def both(name: str, device: str) -> tuple[nn.Module, featx.FeatureExtractWrapper]:
    """timm's and featx's extractors of all levels."""
    import timm

    ours = featx.create_model(name, features_only=True).eval().to(device)
    theirs = timm.create_model(name, features_only=True, out_indices=range(len(ours.feature_info)))
    return theirs.eval().to(device), ours


def time_forwards(plan: Plan, end: float) -> None:
    columns: list[str] = []
    for name in within(plan.names, end):
        for batch in plan.batches:
            forwards = ways(plan, name, batch)
            if not columns:
                columns = [way for way in forwards if way != "timm"]
                title("Forwards", "model", "batch", "timm ms", *columns)
            milliseconds = timed(forwards, plan)
            cells = " | ".join(f"{milliseconds['timm'] / milliseconds[way]:.2f}" for way in columns)
            print(f"| {name} | {batch} | {milliseconds['timm']:.2f} | {cells} |", flush=True)


def ways(plan: Plan, name: str, batch: int) -> dict[str, Forward]:
    """Forwards of one batch by what is timed; of the same images, in the dtype and memory format of each."""
    theirs, ours = both(name, plan.device)
    x = pictures(ours, batch).to(plan.device)
    last = x.contiguous(memory_format=torch.channels_last)
    models: dict[str, tuple[nn.Module, Tensor]] = {"timm": (theirs, x), "featx": (ours, x)}
    for library, model in (("timm", theirs), ("featx", ours)):
        rowwise = deepcopy(model).to(memory_format=torch.channels_last)
        models[f"{library} channels_last"] = rowwise, last
        for word, dtype in HALF.items():
            models[f"{library} {word}"] = deepcopy(rowwise).to(dtype), last.to(dtype)
    models["optimize"] = featx.optimize(ours, example=x), last
    for word, dtype in HALF.items():
        models[f"optimize {word}"] = featx.optimize(ours, dtype=dtype, example=x), last.to(dtype)
    made: dict[str, Forward] = {way: forward(*one) for way, one in models.items()}
    if plan.on_gpu:
        made |= {f"{way}, CUDA graph": graphed(*one) for way, one in models.items() if "channels_last" not in way}
    return made


def forward(model: nn.Module, x: Tensor) -> Forward:
    return lambda: model(x)


@torch.inference_mode()
def graphed(model: nn.Module, x: Tensor) -> Forward:
    """A forward of these images as a CUDA graph, recorded on a stream of its own after a few runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = model(x)

    def replay() -> object:
        graph.replay()
        return kept  # which the graph writes into

    return replay


@torch.inference_mode()
def timed(forwards: dict[str, Forward], plan: Plan) -> dict[str, float]:
    """Median milliseconds of each forward."""
    taken: dict[str, list[float]] = {way: [] for way in forwards}
    for turn in range(plan.repeats + UNTIMED):
        for way, run_once in forwards.items():
            milliseconds = on_the_gpu(run_once) if plan.on_gpu else on_the_cpu(run_once)
            if turn >= UNTIMED:
                taken[way].append(milliseconds)
    return {way: median(values) for way, values in taken.items()}


def on_the_gpu(run_once: Forward) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run_once()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def on_the_cpu(run_once: Forward) -> float:
    start = perf_counter()
    run_once()
    return (perf_counter() - start) * 1e3


def time_compiled(plan: Plan, end: float) -> None:
    """`torch.compile` of both, for one shape; its seconds include the first forward."""
    title("Compiled forwards", "model", "batch", "timm ms", "timm compiled", "featx compiled", "featx ready after, s")
    for name in within(plan.names, end):
        theirs, ours = both(name, plan.device)
        x = pictures(ours, plan.batches[-1]).to(plan.device)
        forwards, seconds = {"timm": forward(deepcopy(theirs), x)}, 0.0
        for library, model in (("timm", theirs), ("featx", ours)):
            model.compile(backend=plan.backend, dynamic=False)
            start = perf_counter()
            with torch.inference_mode():
                model(x)
            seconds = perf_counter() - start
            forwards[f"{library} compiled"] = forward(model, x)
        taken = timed(forwards, plan)
        cells = " | ".join(f"{taken['timm'] / taken[f'{library} compiled']:.2f}" for library in ("timm", "featx"))
        print(f"| {name} | {len(x)} | {taken['timm']:.2f} | {cells} | {seconds:.0f} |", flush=True)
        torch.compiler.reset()


def time_extraction(plan: Plan) -> None:
    """Images a second of both, of the first model; the first run of each is short and not counted."""
    name, rates = plan.names[0], dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder) / "jpegs", plan.images)
        few = write_jpegs(Path(folder) / "few", 4)
        for library, extract in {"timm, DataLoader": by_timm, "featx.extract": by_featx}.items():
            extract(plan, name, few, Path(folder) / f"{library} few")
            start = perf_counter()
            extract(plan, name, jpegs, Path(folder) / library)
            rates[library] = plan.images / (perf_counter() - start)
    title(f"Extraction of {plan.images} JPEGs of 500×375 by {name}", "loop", "images a second")
    for library, rate in rates.items():
        print(f"| {library} | {rate:.0f} |", flush=True)


def by_featx(plan: Plan, name: str, jpegs: Path, out: Path) -> None:
    model = featx.create_model(name, features_only=True, out_indices=[-1]).eval()
    summary = featx.extract(jpegs, model, out, device=plan.device, batch_size=plan.batches[-1])
    assert not summary.failed


class Files(torch.utils.data.Dataset[Tensor]):
    """Images in a folder, as timm prepares them; a class, so that processes of a loader find it."""

    def __init__(self, folder: Path, prepare: Callable[..., Any]) -> None:
        self.files, self.prepare = sorted(folder.glob("*.jpg")), prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        from PIL import Image

        return self.prepare(Image.open(self.files[number]).convert("RGB"))


@torch.inference_mode()
def by_timm(plan: Plan, name: str, jpegs: Path, out: Path) -> None:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    out.mkdir()
    model = timm.create_model(name, features_only=True, out_indices=[-1]).eval().to(plan.device)
    prepare: Any = create_transform(**resolve_data_config({}, model=model))
    files, batch, pinned = Files(jpegs, prepare), plan.batches[-1], plan.on_gpu
    loader = torch.utils.data.DataLoader(files, batch, num_workers=plan.workers, pin_memory=pinned)
    for number, x in enumerate(loader):
        maps = model(x.to(plan.device, non_blocking=True))
        np.save(out / f"{number:06d}.npy", maps[0].cpu().numpy())


def write_jpegs(folder: Path, count: int) -> Path:
    """Pictures of smooth noise, which decode about as fast as photographs."""
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    scenes = [generator.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(16)]
    for number in range(count):
        picture = Image.fromarray(np.roll(scenes[number % len(scenes)], number, axis=1))
        picture.resize((500, 375)).save(folder / f"{number:06d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
