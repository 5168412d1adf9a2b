"""Time of a forward: the extractors of timm, torchvision and transformers, featx's, and what `optimize` makes of it.

All in one process, of one thread, in inference_mode, at the model's own size; CPU time, medians of turns that the ways
take one after another. Ratios above 1 are faster than timm. The last column says how long `optimize` took; the first
use of onednn in a process also imports PyTorch's compiler.

python benchmarks/forward.py [--quick] [NAME ...]
"""

import sys
from statistics import geometric_mean
from typing import Any

import torch
from elsewhere import elsewhere
from fresh import machine
from torch import nn
from turns import FAMILIES, made, timed

import featx

QUICK = ("resnet50", "mobilenetv3_large_100")
REPEATS = {1: 7, 16: 4}  # by batch
WAYS: dict[str, dict[str, Any]] = {
    "optimize": {},
    "onednn": {"runtime": "onednn"},
    "onednn bf16": {"runtime": "onednn", "dtype": torch.bfloat16},
}
COLUMNS = ("torchvision", "transformers", "featx", *WAYS)


def main() -> None:
    torch.set_num_threads(1)
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    names = names or (QUICK if "--quick" in sys.argv else FAMILIES)
    print(f"{machine()}\n")
    print("| model | batch | timm ms | " + " | ".join(COLUMNS) + " | ready after, CPU s |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    ratios: dict[int, list[list[float]]] = {batch: [] for batch in REPEATS}
    for name in names:
        for batch in REPEATS:
            seconds, ready = compared(name, batch)
            row = {way: seconds["timm"] / taken for way, taken in seconds.items()}
            ratios[batch].append([row[way] for way in COLUMNS[2:]])
            cells = " | ".join(f"{row[way]:.2f}" if way in row else "" for way in COLUMNS)
            took = ", ".join(f"{way} {spent:.1f}" for way, spent in ready.items())
            print(f"| {name} | {batch} | {seconds['timm'] * 1e3:.0f} | {cells} | {took} |", flush=True)
    for batch in REPEATS:
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*ratios[batch], strict=True))
        print(f"| geometric mean | {batch} | | | | {means} | |")


def compared(name: str, batch: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a forward by way, and CPU seconds that each way took to make."""
    import timm

    ours = featx.create_model(name, features_only=True).eval()
    assert ours.data_config is not None
    x = torch.randn(batch, 3, *ours.data_config.size)
    theirs = timm.create_model(name, features_only=True, out_indices=range(len(ours.feature_info))).eval()
    ways: dict[str, nn.Module] = {"timm": theirs, **elsewhere(name), "featx": ours}
    ready: dict[str, float] = {}
    for way, arguments in WAYS.items():
        ways[way], ready[way] = made(lambda arguments=arguments: featx.optimize(ours, example=x, **arguments))
    return timed(ways, x, REPEATS[batch]), ready


if __name__ == "__main__":
    main()
