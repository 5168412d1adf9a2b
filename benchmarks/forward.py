"""Forward latency of the extractors of timm, torchvision, transformers and featx, and of featx's optimized extractor.

One thread, inference_mode, the model's own image size. CPU time, interleaved, medians; each extractor runs in its own
process. Ratios above 1 are faster than timm. The last column is the time of `optimize`.

python benchmarks/forward.py [--quick] [NAME ...]
"""

import sys
from functools import partial
from statistics import geometric_mean

from extractors import OPTIMIZED, builders, of_other_library
from interleaved_timing import FAMILIES, timed
from other_libraries import TORCHVISION, TRANSFORMERS
from subprocess_runs import machine

QUICK = ("resnet50", "mobilenetv3_large_100")
BATCHES = (1, 16)
OTHER_LIBRARIES = {"torchvision": TORCHVISION, "transformers": TRANSFORMERS}
FEATX = ("featx", *OPTIMIZED)
COLUMNS = (*OTHER_LIBRARIES, *FEATX)


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    names = names or (QUICK if "--quick" in sys.argv else FAMILIES)
    print(f"{machine()}\n")
    print("| model | batch | timm ms | " + " | ".join(COLUMNS) + " | optimize, CPU s |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    ratios: dict[int, list[list[float]]] = {batch: [] for batch in BATCHES}
    for name in names:
        libraries = [library for library, models in OTHER_LIBRARIES.items() if name in models]
        cases = [
            builders(name, batch) | {library: partial(of_other_library, library, name, batch) for library in libraries}
            for batch in BATCHES
        ]
        for batch, timings in zip(BATCHES, timed(*cases), strict=True):
            row = {candidate: timings["timm"].forward / timing.forward for candidate, timing in timings.items()}
            ratios[batch].append([row[candidate] for candidate in FEATX])
            cells = " | ".join(f"{row[candidate]:.2f}" if candidate in row else "" for candidate in COLUMNS)
            ready = ", ".join(f"{candidate} {timings[candidate].build_seconds:.1f}" for candidate in OPTIMIZED)
            print(f"| {name} | {batch} | {timings['timm'].forward * 1e3:.0f} | {cells} | {ready} |", flush=True)
    for batch in BATCHES:
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*ratios[batch], strict=True))
        print(f"| geometric mean | {batch} | | | | {means} | |")


if __name__ == "__main__":
    main()
