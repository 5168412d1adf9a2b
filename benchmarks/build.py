"""Time and memory to build large variants with random weights, against timm: fresh processes, interleaved, medians.

Peak memory is read the Linux way.

python benchmarks/build.py [NAME ...]
"""

import platform
import subprocess
import sys
from statistics import median

REPEATS = 3
NAMES = ("resnet152", "hrnet_w64", "resnet50", "mobilenetv3_large_100")
CODE = """
import os, {library}
def cpu():
    times = os.times()
    return times.user + times.system
def memory(line):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(line)) / 1024
{library}.create_model("mobilenetv3_small_050")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
start, before = cpu(), memory("VmRSS")
{library}.create_model("{name}")
print(cpu() - start, memory("VmHWM") - before)
"""


def build(library: str, name: str) -> tuple[float, float]:
    """CPU seconds, and MiB by which the process's peak memory grew."""
    code = CODE.format(library=library, name=name)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    seconds, mebibytes = printed.split()
    return float(seconds), float(mebibytes)


def main() -> None:
    import timm
    import torch

    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"Python {platform.python_version()}, {versions}, {platform.machine()}, {REPEATS} processes each\n")
    print("| variant | featx CPU s | timm CPU s | timm / featx | featx MiB | timm MiB |\n|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        measured = {"featx": [], "timm": []}
        for _ in range(REPEATS):
            for library, runs in measured.items():
                runs.append(build(library, name))
        ours, theirs = ([median(column) for column in zip(*runs, strict=True)] for runs in measured.values())
        times = f"{ours[0]:.2f} | {theirs[0]:.2f} | {theirs[0] / ours[0]:.2f}"
        print(f"| {name} | {times} | {ours[1]:.0f} | {theirs[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
