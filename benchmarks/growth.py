"""How the time of a forward grows with the batch and with the size of images, in ms an image.

One thread, inference_mode, CPU time, medians of turns.

python benchmarks/growth.py [NAME ...]
"""

import sys

import torch
from fresh import machine
from torch import nn
from turns import timed

import featx

NAMES = ("mobilenetv3_large_100", "resnet50")
CASES = ((1, 224), (4, 224), (16, 224), (32, 224), (1, 448), (1, 896))  # batches and sizes
REPEATS = 3


def main() -> None:
    import timm

    torch.set_num_threads(1)
    print(f"{machine()}\n")
    print("| model | batch | size | timm | featx | optimize | onednn |\n|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        ours = featx.create_model(name, features_only=True).eval()
        for batch, size in CASES:
            x = torch.randn(batch, 3, size, size)
            ways: dict[str, nn.Module] = {"timm": timm.create_model(name, features_only=True).eval(), "featx": ours}
            ways["optimize"] = featx.optimize(ours, example=x)
            ways["onednn"] = featx.optimize(ours, example=x, runtime="onednn")
            seconds = timed(ways, x, REPEATS)
            cells = " | ".join(f"{taken / batch * 1e3:.1f}" for taken in seconds.values())
            print(f"| {name} | {batch} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
