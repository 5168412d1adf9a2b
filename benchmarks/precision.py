"""Lower precisions with trained weights: similarity of the maps to those of float32, and speedup.

A row is a network, a column a runtime and a precision. Cells have the smallest cosine similarity of all levels, that of
the deepest level, and the speedup in CPU time over float32 in the same runtime, for one image and for 16. int8 is
calibrated on some photographs; all precisions are evaluated on others. One thread; interleaved, medians.

python benchmarks/precision.py [NAME ...]
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from subprocess_runs import machine
from torch import Tensor, nn

import featx
from featx.runtime.agreement import agreement
from featx.runtime.optimization import Runtime

sys.path.insert(0, f"{Path(__file__).parents[1] / 'tests'}")
sys.path.insert(0, f"{Path(__file__).parents[1] / 'examples'}")
from support.trained_networks import CALIBRATION, JUDGED, dinov2_small, lite0, mobilenetv2, photographs

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "tf_efficientnet_lite0": lambda: lite0(features_only=True),
    "mobilenetv2_100": mobilenetv2,
    "vit_small_patch14_dinov2": dinov2_small,
}
LOWER: tuple[tuple[Runtime, torch.dtype], ...] = (
    *(("eager", torch.bfloat16), ("openvino", torch.bfloat16)),
    *(("onnxruntime", torch.int8), ("openvino", torch.int8)),
)
SIZE, BATCHES, ROUNDS = 224, (1, 16), 9


def main() -> None:
    torch.set_num_threads(1)
    names = [f"{runtime}, {f'{dtype}'.removeprefix('torch.')}" for runtime, dtype in LOWER]
    print(f"{machine()}\n\n| | {' | '.join(names)} |\n|---{'|---' * len(LOWER)}|")
    for name in sys.argv[1:] or NETWORKS:
        model = NETWORKS[name]()
        assert isinstance(model, featx.FeatureExtractWrapper)
        calibration, judged = (photographs(model, names, SIZE) for names in (CALIBRATION, JUDGED))
        lower = {(runtime, dtype): _optimize(model, runtime, dtype, calibration) for runtime, dtype in LOWER}
        exact = {runtime: _optimize(model, runtime, torch.float32, calibration) for runtime, _ in LOWER}
        images = torch.cat([calibration, judged])
        seconds = [_seconds({**lower, **exact}, images[:batch]) for batch in BATCHES]
        cells = []
        for (runtime, dtype), extractor in lower.items():
            similarities = [*agreement(extractor, model, judged).values()]
            speedup = " / ".join(f"{times[runtime] / times[runtime, dtype]:.1f}" for times in seconds)
            cells.append(f"{min(similarities):.4f}, {similarities[-1]:.4f}, {speedup}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _optimize(model: nn.Module, runtime: Runtime, dtype: torch.dtype, images: Tensor) -> featx.FeatureExtractWrapper:
    return featx.optimize(model, runtime=runtime, dtype=dtype, example=images)


@torch.inference_mode()
def _seconds(extractors: dict[Any, featx.FeatureExtractWrapper], images: Tensor) -> dict[Any, float]:
    """Return the median CPU seconds of a forward of each extractor, interleaved, after one uncounted round."""
    seconds: dict[Any, list[float]] = {key: [] for key in extractors}
    for _ in range(ROUNDS + 1):
        for key, model in extractors.items():
            start = process_time()
            model(images)
            seconds[key].append(process_time() - start)
    return {key: median(values[1:]) for key, values in seconds.items()}


if __name__ == "__main__":
    main()
