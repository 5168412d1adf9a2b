"""Time and memory to build the largest variants with random weights, compared with timm.

Medians of new processes, featx's and timm's interleaved. Time is CPU seconds of one thread, which depends least on the
number of cores and on other processes. Memory is the increase of the process's peak resident memory, read from
Linux's /proc; the size of the weights is about the minimum.

python benchmarks/build.py [NAME ...]
"""

import platform
import subprocess
import sys
from statistics import median

REPEATS = 3
NAMES = (
    *("vit_huge_patch14_224", "convnext_xlarge", "convnextv2_huge", "tf_efficientnetv2_l"),
    *("hrnet_w64", "resnest269e"),
)
CODE = """
import os, torch, {library}
torch.set_num_threads(1)
def cpu():
    times = os.times()
    return times.user + times.system
def memory(line):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(line)) / 1024
{library}.create_model("test_efficientnet")  # imports the families; too small to leave much reusable memory
open("/proc/self/clear_refs", "w").write("5")  # reset the peak
start, before = cpu(), memory("VmRSS")
model = {library}.create_model("{name}")
print(cpu() - start, memory("VmHWM") - before)
"""


def build(library: str, name: str) -> tuple[float, float]:
    """Return the CPU seconds to build a model, and the increase of the process's peak memory in MiB."""
    code = CODE.format(library=library, name=name)
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, mebibytes = printed.split()
    return float(seconds), float(mebibytes)


def main() -> None:
    import timm
    import torch

    import featx

    versions = f"torch {torch.__version__}, timm {timm.__version__}"
    print(f"Python {platform.python_version()}, {versions}, {platform.machine()}, {REPEATS} processes each\n")
    print("| variant | weights MiB | featx CPU s | timm CPU s | timm / featx | featx MiB | timm MiB |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        with torch.device("meta"):
            weights = sum(tensor.nbytes for tensor in featx.create_model(name).state_dict().values()) / 2**20
        measured = {"featx": [], "timm": []}
        for _ in range(REPEATS):
            for library, runs in measured.items():
                runs.append(build(library, name))
        ours, theirs = ([median(column) for column in zip(*runs, strict=True)] for runs in measured.values())
        times = f"{ours[0]:.2f} | {theirs[0]:.2f} | {theirs[0] / ours[0]:.2f}"
        print(f"| {name} | {weights:.0f} | {times} | {ours[1]:.0f} | {theirs[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
