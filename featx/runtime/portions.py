"""Runs large batches a few images at a time, so that what layers pass on stays in memory that is in use already.

Of a large batch, the maps between two layers are so large that the C library asks the kernel for their memory anew in
every layer, which fills it with zeros, page by page; and they leave the processor's cache before they are read again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log2, prod

import torch
from torch import Tensor

from .capture import Captured

LAYERS = (torch.ops.aten.conv2d, torch.ops.aten.linear)
# Bytes of the largest tensor that glibc takes from memory it keeps. Of images of 224 pixels, those are portions of 4 in
# EfficientNet-B0 and of 8 in MobileNetV3 and ResNet-50, in float32; smaller ones lost more to the start of every layer
# than they gained (one thread, AVX-512).
LARGEST_TENSOR = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Portions:
    """largest: bytes of the largest tensor that a layer returns, per pixel of an image.

    most: images that the graph takes at once, None for any number.
    """

    largest: float
    most: int | None = None

    def images(self, height: int, width: int) -> int:
        """How many images of that size to run at once: a power of two, into which batches are divided evenly."""
        if self.most is not None:
            return self.most
        return 2 ** max(0, floor(log2(LARGEST_TENSOR / (self.largest * height * width))))


def portions_of(captured: Captured) -> Portions:
    """What there is to know of a graph, before its layers are packed."""
    images, _, height, width = captured.taken.shape
    layers = [node for node in captured.graph.graph.nodes if getattr(node.target, "overloadpacket", None) in LAYERS]
    largest = max((_nbytes(node.meta["val"]) for node in layers), default=1)
    return Portions(largest / (images * height * width), None if 0 in captured.taken.free else images)


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
