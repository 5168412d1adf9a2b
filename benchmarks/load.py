"""Time and memory to create a model and load a safetensors file, compared with timm.

Each run is a new process; interleaved, medians. The file has random weights and is in the page cache. Memory is the
increase after the imports, read from Linux's /proc. featx reads files into memory; it memory-maps files in the Hub's
cache, and other files with `mmap=True`. For small files fixed costs dominate: the first model in a process imports
the families, which takes about 0.1 s.

python benchmarks/load.py [NAME ...]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from subprocess_runs import machine, medians

REPEATS = 5
NAMES = ("resnet50", "convnext_large", "vit_large_patch16_224")
MAPPED = "featx, mapped"
CALLS = {
    "featx": "featx.create_model({name!r}, checkpoint_path={path!r})",
    MAPPED: "featx.create_model({name!r}, checkpoint_path={path!r}, mmap=True)",
    "timm": "timm.create_model({name!r}, pretrained=True, pretrained_cfg_overlay=dict(file={path!r}))",
}
CODE = """
import time, torch, {library}
def memory(line):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(line)) / 1024
def since_start():
    peak, anonymous = memory("VmHWM") - resident, memory("RssAnon") - before
    return time.process_time() - cpu, time.perf_counter() - wall, peak, anonymous
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
resident, before = memory("VmRSS"), memory("RssAnon")
cpu, wall = time.process_time(), time.perf_counter()
model = {call}
ready = since_start()
with torch.inference_mode():
    sum(float(parameter.sum()) for parameter in model.parameters())
print(*ready, *since_start())
"""
COLUMNS = ("CPU s", "wall s", "peak MiB", "anonymous MiB")


def main() -> None:
    print(f"{machine()}; {REPEATS} processes each\n")
    columns = " | ".join((*(f"ready: {c}" for c in COLUMNS), *(f"touched: {c}" for c in COLUMNS)))
    print(f"| file | library | {columns} |\n|---|---|{'---|' * 8}")
    with TemporaryDirectory() as folder:
        for name in sys.argv[1:] or NAMES:
            path = Path(folder) / f"{name}.safetensors"
            write(name, path)
            measure(name, path)
            path.unlink()


def write(name: str, path: Path) -> None:
    """Write the model with random weights to a file."""
    from safetensors.torch import save_file

    import featx

    save_file(featx.create_model(name).state_dict(), path, metadata={"format": "pt"})


def measure(name: str, path: Path) -> None:
    """Print a row per loader, and one per featx loader: time relative to timm, memory relative to the file size."""
    calls = {library: call.format(name=name, path=str(path)) for library, call in CALLS.items()}
    codes = {library: CODE.format(library=library.partition(",")[0], call=call) for library, call in calls.items()}
    measured = medians(codes, REPEATS, bytecode=path.parent / "bytecode")
    size = path.stat().st_size / 2**20
    for library, numbers in measured.items():
        cells = (f"{n:.0f}" if i % 4 > 1 else f"{n:.3f}" for i, n in enumerate(numbers))
        print(f"| {name}, {size:.0f} MiB | {library} | {' | '.join(cells)} |")
    for loader in ("featx", MAPPED):
        pairs = enumerate(zip(measured[loader], measured["timm"], strict=True))
        cells = (
            f"{ours / size:.2f} (timm {theirs / size:.2f}) of file" if i % 4 > 1 else f"{theirs / ours:.1f}x less"
            for i, (ours, theirs) in pairs
        )
        print(f"| | **{loader}** | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
