"""Time and memory from `create_model` to a loaded model, against timm, from the same safetensors file.

Every number is of a fresh process; the libraries take turns; medians. The file, of random weights, is in the page
cache. Memory is beyond what the process had after its imports, and is read the Linux way. featx reads files into
memory; it maps those in the Hub's cache, as it does any other with `mmap=True`. A small file is ready sooner by what
building, reading and checking cost for any: a process's first model imports the families, about a tenth of a second.

python benchmarks/load.py [NAME ...]
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fresh import machine, medians

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
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
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
    """The model with random weights, as a file."""
    from safetensors.torch import save_file

    import featx

    save_file(featx.create_model(name).state_dict(), path, metadata={"format": "pt"})


def measure(name: str, path: Path) -> None:
    """Print a row for each way, and one that compares each of ours: with timm in time, with the file in memory."""
    calls = {library: call.format(name=name, path=str(path)) for library, call in CALLS.items()}
    codes = {library: CODE.format(library=library.partition(",")[0], call=call) for library, call in calls.items()}
    measured = medians(codes, REPEATS, bytecode=path.parent / "bytecode")
    size = path.stat().st_size / 2**20
    for library, numbers in measured.items():
        cells = (f"{n:.0f}" if i % 4 > 1 else f"{n:.3f}" for i, n in enumerate(numbers))
        print(f"| {name}, {size:.0f} MiB | {library} | {' | '.join(cells)} |")
    for way in ("featx", MAPPED):
        pairs = enumerate(zip(measured[way], measured["timm"], strict=True))
        cells = (
            f"{ours / size:.2f} (timm {theirs / size:.2f}) of file" if i % 4 > 1 else f"{theirs / ours:.1f}x less"
            for i, (ours, theirs) in pairs
        )
        print(f"| | **{way}** | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
