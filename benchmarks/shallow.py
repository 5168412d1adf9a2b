"""Two shallow levels: featx builds and runs nothing behind the deepest level asked for.

One thread, inference_mode, CPU time, medians of turns; ratios above 1 are faster than timm.

python benchmarks/shallow.py [NAME ...]
"""

import sys

import torch
from fresh import machine
from torch import nn
from turns import timed

import featx

NAMES = ("efficientnet_b0", "mobilenetv3_large_100", "resnet50", "convnext_tiny", "vit_small_patch16_224")
LEVELS, BATCH, REPEATS = (0, 1), 4, 5


def main() -> None:
    import timm

    torch.set_num_threads(1)
    print(f"{machine()}\n\nlevels {LEVELS}, batch {BATCH}\n")
    print("| model | timm ms | featx | optimize | onednn | parameters of timm's | of featx's |")
    print("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        theirs = timm.create_model(name, features_only=True, out_indices=LEVELS).eval()
        ours = featx.create_model(name, features_only=True, out_indices=LEVELS).eval()
        assert ours.data_config is not None
        x = torch.randn(BATCH, 3, *ours.data_config.size)
        ways: dict[str, nn.Module] = {"timm": theirs, "featx": ours, "optimize": featx.optimize(ours, example=x)}
        ways["onednn"] = featx.optimize(ours, example=x, runtime="onednn")
        seconds = timed(ways, x, REPEATS)
        ratios = " | ".join(f"{seconds['timm'] / taken:.2f}" for way, taken in seconds.items() if way != "timm")
        counts = " | ".join(f"{sum(p.numel() for p in model.parameters()):,}" for model in (theirs, ours))
        print(f"| {name} | {seconds['timm'] * 1e3:.0f} | {ratios} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
