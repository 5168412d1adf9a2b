"""Time of a forward in ONNX Runtime and OpenVINO, beside onednn, as ratios to timm's; above 1 is faster.

Of one thread, in float32 but for ways that say otherwise, at the model's own size; CPU time, medians of turns, each way
in a process of its own. The best is of those in float32. The last column says how long `optimize` took.

python benchmarks/runtimes.py [NAME ...]
"""

import sys
from statistics import geometric_mean

from contestants import PORTABLE, ways
from fresh import machine
from turns import FAMILIES, timed

BATCHES = (1, 16)
WAYS = ("onednn", *PORTABLE)
FLOAT32 = ("onednn", "onnxruntime", "openvino")


def main() -> None:
    print(f"{machine()}\n")
    print(f"| model | batch | timm ms | {' | '.join(WAYS)} | best | ready after, CPU s |")
    print("|---" * (len(WAYS) + 5) + "|")
    ratios: dict[int, list[list[float]]] = {batch: [] for batch in BATCHES}
    for name in sys.argv[1:] or FAMILIES:
        cases = [ways(name, batch, optimizations=WAYS) for batch in BATCHES]
        for batch, taken in zip(BATCHES, timed(*cases, generations=1), strict=True):
            row = {way: taken["timm"].forward / taken[way].forward for way in WAYS}
            ratios[batch].append([*row.values(), max(row[way] for way in FLOAT32)])
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios[batch][-1])
            ready = ", ".join(f"{way} {taken[way].making:.1f}" for way in WAYS)
            print(f"| {name} | {batch} | {taken['timm'].forward * 1e3:.0f} | {cells} | {ready} |", flush=True)
    for batch in BATCHES:
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*ratios[batch], strict=True))
        print(f"| geometric mean | {batch} | | {means} | |")


if __name__ == "__main__":
    main()
