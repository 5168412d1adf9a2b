"""How the time of a forward grows with the batch and with the size of images, in ms an image.

One thread, inference_mode, CPU time, medians of turns, each way in a process of its own.

python benchmarks/growth.py [NAME ...]
"""

import sys

from contestants import ways
from fresh import machine
from turns import timed

NAMES = ("mobilenetv3_large_100", "resnet50")
CASES = ((1, 224), (4, 224), (16, 224), (32, 224), (1, 448), (1, 896))  # batches and sizes
WAYS = ("timm", "featx", "optimize", "auto")


def main() -> None:
    print(f"{machine()}\n")
    print(f"| model | batch | size | {' | '.join(WAYS)} |\n|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        cases = [ways(name, batch, size, optimizations=WAYS[2:]) for batch, size in CASES]
        for (batch, size), taken in zip(CASES, timed(*cases), strict=True):
            cells = " | ".join(f"{taken[way].forward / batch * 1e3:.1f}" for way in WAYS)
            print(f"| {name} | {batch} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
