"""Maps, forwards, compiled forwards and extraction on a CUDA GPU, timm's and featx's, within ten minutes.

TensorFloat-32 is off. Maps: for every family, the maps in float32 on the GPU are compared with float64 on the CPU; the
difference relative to the largest value of a level is at most 1e-4. Forwards: inference_mode, interleaved, medians,
timed by CUDA events; ratios are relative to timm's eager float32, above 1 is faster. bf16 and fp16 are channels last;
"optimize" folds the norms; a CUDA graph replays the kernels of one forward without Python in between. Extraction:
folders of JPEGs to the deepest maps in float32 on disk, by `featx.extract`, and by timm with a DataLoader and pinned
memory, in images per second. Each part has a time limit and stops after the model that exceeds it.

python benchmarks/gpu.py [--device cuda] [--minutes 9] [NAME ...]

On the CPU it runs two small models, without CUDA graphs, to test the script.
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
from interleaved_timing import FAMILIES
from subprocess_runs import machine
from torch import Tensor, nn

import featx

TOLERANCE = 1e-4  # for float32: other devices sum in another order
WARMUP_ROUNDS = 3  # uncounted, in which kernels are selected and loaded
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[[], object]


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """Settings of a run.

    Attributes:
        device: PyTorch device.
        names: models that are timed.
        checked: models whose maps are compared.
        batches: batch sizes.
        repeats: counted rounds.
        images: number of JPEGs of the extraction.
        workers: of timm's DataLoader.
        backend: of torch.compile.
    """

    device: str
    names: tuple[str, ...]
    checked: tuple[str, ...]
    batches: tuple[int, ...]
    repeats: int
    images: int
    workers: int
    backend: str

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"


OTHERS = ("mobilenetv2_100", "regnety_008", "convnextv2_nano", "vit_tiny_r_s16_p8_224")
ON_GPU = BenchmarkPlan("cuda", FAMILIES, (*FAMILIES, *OTHERS), (1, 64), 15, 4096, 12, "inductor")
SMALL = ("test_efficientnet", "mobilenetv3_small_050")
ON_CPU = BenchmarkPlan("cpu", SMALL, SMALL, (2,), 1, 4, 0, "eager")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9)
    options = parser.parse_args()
    plan = ON_GPU if options.device == "cuda" else ON_CPU
    if options.names:
        plan = replace(plan, names=tuple(options.names), checked=tuple(options.names))
    if plan.on_gpu and not torch.cuda.is_available():
        print("Not run: PyTorch saw no GPU.")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if plan.on_gpu else "no GPU: a trial"
    print(f"{machine().replace('one thread used', 'all of them used')}; {card}", flush=True)
    sys.exit(0 if run(plan, options.minutes * 60) else "maps differ by more than the tolerance")


def run(plan: BenchmarkPlan, seconds: float) -> bool:
    """Run all parts within the seconds; return whether all maps are correct."""
    passed = check_maps(plan, perf_counter() + 0.15 * seconds)
    time_forwards(plan, perf_counter() + 0.4 * seconds)
    time_extraction(plan)
    time_compiled(plan, perf_counter() + 0.25 * seconds)
    return passed


def until(names: tuple[str, ...], end: float) -> Iterator[str]:
    """Yield names until the time `end`, then print the names that were skipped."""
    for number, name in enumerate(names):
        if perf_counter() > end:
            print(f"\nSkipped, because the time limit was reached: {', '.join(names[number:])}.", flush=True)
            return
        yield name


def title(text: str, *columns: str) -> None:
    print(f"\n{text}\n\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)


def check_maps(plan: BenchmarkPlan, end: float) -> bool:
    """Compare maps with those of the CPU until the time `end`; return whether all agree within TOLERANCE."""
    title("Maps, largest difference relative to the largest value of the level", "model", "levels", "difference")
    worst = 0.0
    for name in until(plan.checked, end):
        model = featx.create_model(name, features_only=True).eval()
        x = random_images(model, 2)
        with torch.inference_mode():
            expected = deepcopy(model).double()(x.double())
            actual = model.to(plan.device)(x.to(plan.device))
        differences = [relative_error(a.cpu().double(), e) for a, e in zip(actual, expected, strict=True)]
        worst = max([worst, *differences])
        print(f"| {name} | {len(actual)} | {max(differences):.1e} |", flush=True)
    return worst <= TOLERANCE


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinity if a value is not finite."""
    difference = float((actual - expected).abs().max() / expected.abs().max())
    return difference if np.isfinite(difference) else float("inf")


def random_images(model: featx.FeatureExtractWrapper, batch: int) -> Tensor:
    """Return random images (batch, 3, H, W) of the model's own size."""
    assert model.data_config is not None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, *model.data_config.size, generator=generator)


def build_extractors(name: str, device: str) -> tuple[nn.Module, featx.FeatureExtractWrapper]:
    """Return timm's and featx's extractors of all levels."""
    import timm

    ours = featx.create_model(name, features_only=True).eval().to(device)
    theirs = timm.create_model(name, features_only=True, out_indices=range(len(ours.feature_info)))
    return theirs.eval().to(device), ours


def time_forwards(plan: BenchmarkPlan, end: float) -> None:
    columns: list[str] = []
    for name in until(plan.names, end):
        for batch in plan.batches:
            forwards = build_forwards(plan, name, batch)
            if not columns:
                columns = [candidate for candidate in forwards if candidate != "timm"]
                title("Forwards", "model", "batch", "timm ms", *columns)
            milliseconds = median_milliseconds(forwards, plan)
            cells = " | ".join(f"{milliseconds['timm'] / milliseconds[candidate]:.2f}" for candidate in columns)
            print(f"| {name} | {batch} | {milliseconds['timm']:.2f} | {cells} |", flush=True)


def build_forwards(plan: BenchmarkPlan, name: str, batch: int) -> dict[str, Forward]:
    """Return the forwards to time, by name: the same images, in each dtype and memory format."""
    theirs, ours = build_extractors(name, plan.device)
    x = random_images(ours, batch).to(plan.device)
    x_last = x.contiguous(memory_format=torch.channels_last)
    models: dict[str, tuple[nn.Module, Tensor]] = {"timm": (theirs, x), "featx": (ours, x)}
    for library, model in (("timm", theirs), ("featx", ours)):
        channels_last = deepcopy(model).to(memory_format=torch.channels_last)
        models[f"{library} channels_last"] = channels_last, x_last
        for suffix, dtype in HALF.items():
            models[f"{library} {suffix}"] = deepcopy(channels_last).to(dtype), x_last.to(dtype)
    models["optimize"] = featx.optimize(ours, example=x), x_last
    for suffix, dtype in HALF.items():
        models[f"optimize {suffix}"] = featx.optimize(ours, dtype=dtype, example=x), x_last.to(dtype)
    forwards: dict[str, Forward] = {candidate: forward(*inputs) for candidate, inputs in models.items()}
    if plan.on_gpu:
        graphs = {name: inputs for name, inputs in models.items() if "channels_last" not in name}
        forwards |= {f"{name}, CUDA graph": cuda_graph(*inputs) for name, inputs in graphs.items()}
    return forwards


def forward(model: nn.Module, x: Tensor) -> Forward:
    return lambda: model(x)


@torch.inference_mode()
def cuda_graph(model: nn.Module, x: Tensor) -> Forward:
    """Capture a forward of these images as a CUDA graph, on a separate stream after three warm-up runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = model(x)

    def replay() -> object:
        graph.replay()
        return outputs  # the graph writes into these tensors

    return replay


@torch.inference_mode()
def median_milliseconds(forwards: dict[str, Forward], plan: BenchmarkPlan) -> dict[str, float]:
    """Return the median milliseconds of each forward, interleaved."""
    measured: dict[str, list[float]] = {candidate: [] for candidate in forwards}
    for round_number in range(plan.repeats + WARMUP_ROUNDS):
        for candidate, run_once in forwards.items():
            milliseconds = time_on_gpu(run_once) if plan.on_gpu else time_on_cpu(run_once)
            if round_number >= WARMUP_ROUNDS:
                measured[candidate].append(milliseconds)
    return {candidate: median(values) for candidate, values in measured.items()}


def time_on_gpu(run_once: Forward) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run_once()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def time_on_cpu(run_once: Forward) -> float:
    start = perf_counter()
    run_once()
    return (perf_counter() - start) * 1e3


def time_compiled(plan: BenchmarkPlan, end: float) -> None:
    """Time both extractors with `torch.compile`, for one shape; compile seconds include the first forward."""
    title("Compiled forwards", "model", "batch", "timm ms", "timm compiled", "featx compiled", "featx compilation, s")
    for name in until(plan.names, end):
        theirs, ours = build_extractors(name, plan.device)
        x = random_images(ours, plan.batches[-1]).to(plan.device)
        forwards, seconds = {"timm": forward(deepcopy(theirs), x)}, 0.0
        for library, model in (("timm", theirs), ("featx", ours)):
            model.compile(backend=plan.backend, dynamic=False)
            start = perf_counter()
            with torch.inference_mode():
                model(x)
            seconds = perf_counter() - start
            forwards[f"{library} compiled"] = forward(model, x)
        times = median_milliseconds(forwards, plan)
        cells = " | ".join(f"{times['timm'] / times[f'{library} compiled']:.2f}" for library in ("timm", "featx"))
        print(f"| {name} | {len(x)} | {times['timm']:.2f} | {cells} | {seconds:.0f} |", flush=True)
        torch.compiler.reset()


def time_extraction(plan: BenchmarkPlan) -> None:
    """Measure the throughput of both extractions with the first model; a short uncounted run comes first."""
    name, rates = plan.names[0], dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        jpegs = write_jpegs(Path(folder) / "jpegs", plan.images)
        warmup_jpegs = write_jpegs(Path(folder) / "warmup_jpegs", 4)
        for library, extract in {"timm, DataLoader": by_timm, "featx.extract": by_featx}.items():
            extract(plan, name, warmup_jpegs, Path(folder) / f"{library} warmup_jpegs")
            start = perf_counter()
            extract(plan, name, jpegs, Path(folder) / library)
            rates[library] = plan.images / (perf_counter() - start)
    title(f"Extraction of {plan.images} JPEGs of 500×375 by {name}", "loop", "images per second")
    for library, rate in rates.items():
        print(f"| {library} | {rate:.0f} |", flush=True)


def by_featx(plan: BenchmarkPlan, name: str, jpegs: Path, out: Path) -> None:
    model = featx.create_model(name, features_only=True, out_indices=[-1]).eval()
    summary = featx.extract(jpegs, model, out, device=plan.device, batch_size=plan.batches[-1])
    assert not summary.failed


class JpegDataset(torch.utils.data.Dataset[Tensor]):
    """Images of a folder, preprocessed by timm. A module-level class, so that DataLoader workers can import it."""

    def __init__(self, folder: Path, prepare: Callable[..., Any]) -> None:
        self.files, self.prepare = sorted(folder.glob("*.jpg")), prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        from PIL import Image

        return self.prepare(Image.open(self.files[number]).convert("RGB"))


@torch.inference_mode()
def by_timm(plan: BenchmarkPlan, name: str, jpegs: Path, out: Path) -> None:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    out.mkdir()
    model = timm.create_model(name, features_only=True, out_indices=[-1]).eval().to(plan.device)
    prepare: Any = create_transform(**resolve_data_config({}, model=model))
    files, batch, pinned = JpegDataset(jpegs, prepare), plan.batches[-1], plan.on_gpu
    loader = torch.utils.data.DataLoader(files, batch, num_workers=plan.workers, pin_memory=pinned)
    for number, x in enumerate(loader):
        maps = model(x.to(plan.device, non_blocking=True))
        np.save(out / f"{number:06d}.npy", maps[0].cpu().numpy())


def write_jpegs(folder: Path, count: int) -> Path:
    """Write JPEGs of smooth noise, which decode about as fast as photographs."""
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
