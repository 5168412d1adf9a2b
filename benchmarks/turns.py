"""Forwards that take turns in one process, in processor time, so that what else runs on the machine harms all alike."""

from collections.abc import Callable, Mapping
from random import Random
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn

# of timm's models and of featx's
FAMILIES = (
    *("resnet50", "resnest26d", "repvgg_a2", "mobilenetv3_large_100", "efficientnet_b0", "tf_efficientnetv2_b0"),
    *("rexnet_100", "hrnet_w18", "convnext_tiny", "mobilevit_s", "mobilevitv2_100", "vit_small_patch16_224"),
)


def made(make: Callable[[], nn.Module]) -> tuple[nn.Module, float]:
    """What it makes, and the CPU seconds that took."""
    start = process_time()
    model = make()
    return model, process_time() - start


@torch.inference_mode()
def timed(ways: Mapping[str, nn.Module], x: Tensor, repeats: int) -> dict[str, float]:
    """Median CPU seconds of a forward in each way, the ways taking turns; the first turn is not counted.

    Every turn has another order, because a forward finds the memory that the one before it left behind.
    """
    taken: dict[str, list[float]] = {way: [] for way in ways}
    order, shuffle = [*ways], Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(order)
        for way in order:
            start = process_time()
            ways[way](x)
            if turn:
                taken[way].append(process_time() - start)
    return {way: median(seconds) for way, seconds in taken.items()}
