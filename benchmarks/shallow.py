"""Forward latency of two shallow levels: featx neither builds nor runs modules behind the deepest selected level.

One thread, inference_mode, CPU time, interleaved, medians; each extractor runs in its own process. Ratios above 1 are
faster than timm.

python benchmarks/shallow.py [NAME ...]
"""

import sys

from extractors import builders
from interleaved_timing import timed
from subprocess_runs import machine

NAMES = ("efficientnet_b0", "mobilenetv3_large_100", "resnet50", "convnext_tiny", "vit_small_patch16_224")
LEVELS, BATCH = (0, 1), 4
CANDIDATES = ("featx", "optimize", "auto")


def main() -> None:
    print(f"{machine()}\n\nlevels {LEVELS}, batch {BATCH}\n")
    print(f"| model | timm ms | {' | '.join(CANDIDATES)} | timm parameters | featx parameters |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        (timings,) = timed(builders(name, BATCH, None, LEVELS, optimizations=CANDIDATES[1:]))
        ratios = " | ".join(f"{timings['timm'].forward / timings[candidate].forward:.2f}" for candidate in CANDIDATES)
        counts = " | ".join(f"{timings[candidate].parameters:,}" for candidate in ("timm", "featx"))
        print(f"| {name} | {timings['timm'].forward * 1e3:.0f} | {ratios} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
