"""Two shallow levels: featx builds and runs nothing behind the deepest level asked for.

One thread, inference_mode, CPU time, medians of turns, each way in a process of its own; ratios above 1 are faster than
timm.

python benchmarks/shallow.py [NAME ...]
"""

import sys

from contestants import ways
from fresh import machine
from turns import timed

NAMES = ("efficientnet_b0", "mobilenetv3_large_100", "resnet50", "convnext_tiny", "vit_small_patch16_224")
LEVELS, BATCH = (0, 1), 4
WAYS = ("featx", "optimize", "auto")


def main() -> None:
    print(f"{machine()}\n\nlevels {LEVELS}, batch {BATCH}\n")
    print(f"| model | timm ms | {' | '.join(WAYS)} | parameters of timm's | of featx's |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        (taken,) = timed(ways(name, BATCH, None, LEVELS, optimizations=WAYS[1:]))
        ratios = " | ".join(f"{taken['timm'].forward / taken[way].forward:.2f}" for way in WAYS)
        counts = " | ".join(f"{taken[way].parameters:,}" for way in ("timm", "featx"))
        print(f"| {name} | {taken['timm'].forward * 1e3:.0f} | {ratios} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
