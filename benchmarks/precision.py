"""Lower precisions on trained weights: how similar maps are to those of float32, and how much faster they come.

A row is a network, a column a runtime and a precision: the least cosine similarity of all levels, that of the deepest
level, and the times less processor time than float32 in the same runtime, for one image and for 16. int8 is calibrated
on some photographs, and all are judged by others. One thread; medians of forwards that take turns.

python benchmarks/precision.py [NAME ...]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from fresh import machine
from torch import Tensor, nn

import featx
from featx.runtime.agreement import agreement
from featx.runtime.optimization import Runtime

sys.path.insert(0, f"{Path(__file__).parents[1] / 'tests'}")
from trained import CALIBRATION, JUDGED, dinov2_small, lite0, mobilenetv2, photographs

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "tf_efficientnet_lite0": lambda: lite0(features_only=True),
    "mobilenetv2_100": mobilenetv2,
    "vit_small_patch14_dinov2": dinov2_small,
}
LOWER: tuple[tuple[Runtime, torch.dtype], ...] = (
    *(("eager", torch.bfloat16), ("openvino", torch.bfloat16)),
    *(("onnxruntime", torch.int8), ("openvino", torch.int8)),
)
SIZE, BATCHES, TURNS = 224, (1, 16), 9


def main() -> None:
    torch.set_num_threads(1)
    names = [f"{runtime}, {f'{dtype}'.removeprefix('torch.')}" for runtime, dtype in LOWER]
    print(f"{machine()}\n\n| | {' | '.join(names)} |\n|---{'|---' * len(LOWER)}|")
    for name in sys.argv[1:] or NETWORKS:
        model = NETWORKS[name]()
        assert isinstance(model, featx.FeatureExtractWrapper)
        calibration, judged = (photographs(model, names, SIZE) for names in (CALIBRATION, JUDGED))
        made = {(runtime, dtype): _made(model, runtime, dtype, calibration) for runtime, dtype in LOWER}
        exact = {runtime: _made(model, runtime, torch.float32, calibration) for runtime, _ in LOWER}
        images = torch.cat([calibration, judged])
        seconds = [_seconds({**made, **exact}, images[:batch]) for batch in BATCHES]
        cells = []
        for (runtime, dtype), one in made.items():
            found = [*agreement(one, model, judged).values()]
            faster = " / ".join(f"{taken[runtime] / taken[runtime, dtype]:.1f}" for taken in seconds)
            cells.append(f"{min(found):.4f}, {found[-1]:.4f}, {faster}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _made(model: nn.Module, runtime: Runtime, dtype: torch.dtype, images: Tensor) -> featx.FeatureExtractWrapper:
    return featx.optimize(model, runtime=runtime, dtype=dtype, example=images)


@torch.inference_mode()
def _seconds(ways: dict[Any, featx.FeatureExtractWrapper], images: Tensor) -> dict[Any, float]:
    """Median processor seconds of a forward in each way, which take turns, after one that is not counted."""
    taken: dict[Any, list[float]] = {way: [] for way in ways}
    for _ in range(TURNS + 1):
        for way, model in ways.items():
            start = process_time()
            model(images)
            taken[way].append(process_time() - start)
    return {way: median(seconds[1:]) for way, seconds in taken.items()}


if __name__ == "__main__":
    main()
