"""Time of a forward: the extractors of timm, torchvision and transformers, featx's, and what `optimize` makes of it.

Of one thread, in inference_mode, at the model's own size; CPU time, medians of turns that the ways take one after
another, each in a process of its own. Ratios above 1 are faster than timm. The last column says how long `optimize`
took. Ways in bfloat16 are there where the processor computes in it.

python benchmarks/forward.py [--quick] [NAME ...]
"""

import sys
from functools import partial
from statistics import geometric_mean

from contestants import OPTIMIZED, of_another, ways
from elsewhere import TORCHVISION, TRANSFORMERS
from fresh import machine
from turns import FAMILIES, timed

QUICK = ("resnet50", "mobilenetv3_large_100")
BATCHES = (1, 16)
ELSEWHERE = {"torchvision": TORCHVISION, "transformers": TRANSFORMERS}
OURS = ("featx", *OPTIMIZED)
COLUMNS = (*ELSEWHERE, *OURS)


def main() -> None:
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    names = names or (QUICK if "--quick" in sys.argv else FAMILIES)
    print(f"{machine()}\n")
    print("| model | batch | timm ms | " + " | ".join(COLUMNS) + " | ready after, CPU s |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    ratios: dict[int, list[list[float]]] = {batch: [] for batch in BATCHES}
    for name in names:
        others = [package for package, models in ELSEWHERE.items() if name in models]
        cases = [
            {**ways(name, batch), **{package: partial(of_another, package, name, batch) for package in others}}
            for batch in BATCHES
        ]
        for batch, taken in zip(BATCHES, timed(*cases), strict=True):
            row = {way: taken["timm"].forward / one.forward for way, one in taken.items()}
            ratios[batch].append([row[way] for way in OURS])
            cells = " | ".join(f"{row[way]:.2f}" if way in row else "" for way in COLUMNS)
            ready = ", ".join(f"{way} {taken[way].making:.1f}" for way in OPTIMIZED)
            print(f"| {name} | {batch} | {taken['timm'].forward * 1e3:.0f} | {cells} | {ready} |", flush=True)
    for batch in BATCHES:
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*ratios[batch], strict=True))
        print(f"| geometric mean | {batch} | | | | {means} | |")


if __name__ == "__main__":
    main()
