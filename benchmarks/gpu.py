"""Forwards on a CUDA GPU: timm's and featx's, `optimize` in three precisions, and with CUDA graphs, in ms a batch.

Channels last, inference_mode, medians of turns that the ways take one after another, timed by events of the GPU. A CUDA
graph replays the kernels of one forward on memory of its own, without Python in between. TensorFloat-32 is off.

python benchmarks/gpu.py [NAME ...]
"""

import sys
from collections.abc import Callable
from statistics import median

import torch
from fresh import machine
from torch import Tensor
from turns import FAMILIES

import featx

BATCHES = (1, 64)
REPEATS = 20
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COLUMNS = ("timm", "featx", *DTYPES, *(f"{dtype}, CUDA graph" for dtype in DTYPES))
Forward = Callable[[], object]


def main() -> None:
    if not torch.cuda.is_available():
        print("Not run: PyTorch saw no GPU.")
        return
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{machine()}; {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}\n")
    print("| model | batch | " + " | ".join(COLUMNS) + " |\n|---|---" + "|---" * len(COLUMNS) + "|")
    for name in sys.argv[1:] or FAMILIES:
        for batch in BATCHES:
            milliseconds = timed(ways(name, batch))
            cells = " | ".join(f"{milliseconds[way]:.2f}" for way in COLUMNS)
            print(f"| {name} | {batch} | {cells} |", flush=True)


def ways(name: str, batch: int) -> dict[str, Forward]:
    import timm

    ours = featx.create_model(name, features_only=True, device="cuda").eval()
    assert ours.data_config is not None
    x = torch.randn(batch, 3, *ours.data_config.size, device="cuda").to(memory_format=torch.channels_last)
    theirs = timm.create_model(name, features_only=True, out_indices=range(len(ours.feature_info))).eval().cuda()
    made: dict[str, Forward] = {"timm": lambda: theirs(x), "featx": lambda: ours(x)}
    for word, dtype in DTYPES.items():
        faster = featx.optimize(ours, dtype=dtype, example=x)
        images = x if dtype is None else x.to(dtype)
        made[word] = lambda faster=faster, images=images: faster(images)
        made[f"{word}, CUDA graph"] = graphed(faster, images)
    return made


@torch.inference_mode()
def graphed(model: featx.FeatureExtractWrapper, x: Tensor) -> Forward:
    """A forward of these images as a CUDA graph, recorded on a stream of its own after a few runs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = model(x)

    def replay() -> object:
        graph.replay()
        return kept  # which the graph writes into

    return replay


@torch.inference_mode()
def timed(ways: dict[str, Forward]) -> dict[str, float]:
    """Median milliseconds of a forward in each way; the first three turns are not counted."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(REPEATS + 3):
        for way, forward in ways.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            forward()
            end.record()
            end.synchronize()
            if turn >= 3:
                taken[way].append(start.elapsed_time(end))
    return {way: median(milliseconds) for way, milliseconds in taken.items()}


if __name__ == "__main__":
    main()
