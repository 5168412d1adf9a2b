"""Runs large batches a few images at a time, so that what layers pass on stays in the cache and in memory in use.

Of a large batch, the maps between two layers are too large for the processor's cache, and so large that the C library
asks the kernel for their memory again in every layer, which fills it with zeros, page by page. In portions, neither
happens. A portion is no smaller than to make reading all weights anew, once per portion, the lesser work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2, prod

import torch
from torch import Tensor

from .capture import Captured

LAYERS = (torch.ops.aten.conv2d, torch.ops.aten.linear)
# Bytes that these return over bytes of weights, from which on more images at once gained nothing; and bytes of one
# tensor that glibc takes from memory it keeps. Of 224 pixels, MobileNetV3 and EfficientNet were fastest with 2 to 8
# images at once, ResNet-50 with 8 to 16 (AVX-512, float32).
WORK_PER_WEIGHT = 6
LARGEST_TENSOR = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Portions:
    """weights: bytes. passed_on, largest: bytes that layers return in all, and of the largest, per pixel of an image.

    most: images that the graph takes at once, None for any number.
    """

    weights: int
    passed_on: float
    largest: float
    most: int | None = None

    def images(self, x: Tensor) -> int:
        """How many of the images (N, C, H, W) to run at once."""
        if self.most is not None:
            return self.most
        pixels = x.shape[2] * x.shape[3]
        enough = WORK_PER_WEIGHT * self.weights / (self.passed_on * pixels)
        fitting = LARGEST_TENSOR / (self.largest * pixels)
        # a power of two, into which batches are divided evenly
        return 2 ** max(0, min(ceil(log2(enough)), floor(log2(fitting))))


def portions_of(captured: Captured) -> Portions:
    """What there is to know of a graph, before its layers are packed."""
    images, _, height, width = captured.shape
    layers = [node for node in captured.graph.graph.nodes if getattr(node.target, "overloadpacket", None) in LAYERS]
    results = [_nbytes(node.meta["val"]) for node in layers]
    weights = sum(tensor.nbytes for tensor in captured.graph.parameters())
    pixels, most = images * height * width, None if 0 in captured.free else images
    return Portions(max(weights, 1), sum(results, 1) / pixels, max(results, default=1) / pixels, most)


def _nbytes(value: Tensor) -> int:
    """Bytes of a tensor at the size that was captured."""
    return prod(side if isinstance(side, int) else side.node.hint for side in value.shape) * value.dtype.itemsize


def in_portions(run: Callable[[Tensor], Sequence[Tensor]], x: Tensor, images: int) -> Sequence[Tensor]:
    """What `run` returns for all of `x`, run on so many images at a time."""
    if len(x) <= images:
        return run(x)
    whole: list[Tensor] = []
    for start in range(0, len(x), images):
        part = run(x[start : start + images])
        if not whole:
            whole = [_room_for(tensor, len(x)) for tensor in part]
        for room, tensor in zip(whole, part, strict=True):
            room[start : start + images].copy_(tensor)
    return whole


def _room_for(part: Tensor, images: int) -> Tensor:
    """Memory for what is returned for so many images, in the order of `part`."""
    last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((images, *part.shape[1:]), dtype=part.dtype, memory_format=layout)
