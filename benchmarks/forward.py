"""Time of a forward through timm's features_only extractor, featx's, and what `optimize` makes of it.

One thread, 224 pixels or the model's own size, inference_mode, CPU time of the process, medians of turns that the ways
take one after another. The last column says how long `optimize` took. Ratios above 1 are faster than timm.

python benchmarks/forward.py [--quick] [NAME ...]
"""

import sys
from collections.abc import Callable
from statistics import geometric_mean, median
from time import process_time
from typing import Any

import torch
from fresh import machine
from torch import Tensor, nn

import featx

NAMES = (
    *("resnet50", "resnest26d", "repvgg_a2", "mobilenetv3_large_100", "efficientnet_b0", "tf_efficientnetv2_b0"),
    *("rexnet_100", "hrnet_w18", "convnext_tiny", "mobilevit_s", "mobilevitv2_100", "vit_small_patch16_224"),
)
QUICK = ("resnet50", "mobilenetv3_large_100")
BATCHES = (1, 16)
WAYS: dict[str, dict[str, Any]] = {
    "optimize": {},
    "bf16": {"dtype": torch.bfloat16},
    "onednn": {"runtime": "onednn"},
    "onednn bf16": {"runtime": "onednn", "dtype": torch.bfloat16},
}


def main() -> None:
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or (QUICK if quick else NAMES)
    repeats = 3 if quick else 7
    print(f"{machine()}\nmedians of {repeats} forwards each, interleaved; ratios to timm\n")
    columns = ["featx", *WAYS]
    print("| model | batch | timm ms | " + " | ".join(columns) + " | ready after, CPU s |")
    print("|---" * (len(columns) + 4) + "|")
    ratios: dict[int, list[list[float]]] = {batch: [] for batch in BATCHES}
    for name in names:
        for batch in BATCHES:
            row, ready = compared(name, batch, repeats)
            ratios[batch].append([row["timm"] / row[way] for way in columns])
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios[batch][-1])
            took = ", ".join(f"{way} {seconds:.1f}" for way, seconds in ready.items())
            print(f"| {name} | {batch} | {row['timm'] * 1e3:.0f} | {cells} | {took} |", flush=True)
    for batch in BATCHES:
        means = " | ".join(f"{geometric_mean(column):.2f}" for column in zip(*ratios[batch], strict=True))
        print(f"| geometric mean | {batch} |  | {means} |  |")


def compared(name: str, batch: int, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a forward by way, and CPU seconds that each way took to make."""
    import timm

    ours = featx.create_model(name, features_only=True).eval()
    assert ours.data_config is not None
    x = torch.randn(batch, 3, *ours.data_config.size)
    theirs = timm.create_model(name, features_only=True, out_indices=range(len(ours.feature_info))).eval()
    ways: dict[str, nn.Module] = {"timm": theirs, "featx": ours}
    ready: dict[str, float] = {}
    for way, arguments in WAYS.items():
        ways[way], ready[way] = _timed(lambda arguments=arguments: featx.optimize(ours, example=x, **arguments))
    return timed(ways, x, repeats), ready


def _timed(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    start = process_time()
    made = make()
    return made, process_time() - start


@torch.inference_mode()
def timed(ways: dict[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Median CPU seconds of a forward in each way, the ways taking turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, model in ways.items():
            start = process_time()
            model(x)
            if turn:
                taken[way].append(process_time() - start)
    return {way: median(seconds) for way, seconds in taken.items()}


if __name__ == "__main__":
    main()
