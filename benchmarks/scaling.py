"""Forward latency by batch size and image size, in ms per image.

One thread, inference_mode, CPU time, interleaved, medians; each extractor runs in its own process.

python benchmarks/scaling.py [NAME ...]
"""

import sys

from extractors import builders
from interleaved_timing import timed
from subprocess_runs import machine

NAMES = ("mobilenetv3_large_100", "resnet50")
CASES = ((1, 224), (4, 224), (16, 224), (32, 224), (1, 448), (1, 896))  # batch sizes and image sizes
CANDIDATES = ("timm", "featx", "optimize", "auto")


def main() -> None:
    print(f"{machine()}\n")
    print(f"| model | batch | size | {' | '.join(CANDIDATES)} |\n|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        cases = [builders(name, batch, size, optimizations=CANDIDATES[2:]) for batch, size in CASES]
        for (batch, size), timings in zip(CASES, timed(*cases), strict=True):
            cells = " | ".join(f"{timings[candidate].forward / batch * 1e3:.1f}" for candidate in CANDIDATES)
            print(f"| {name} | {batch} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
