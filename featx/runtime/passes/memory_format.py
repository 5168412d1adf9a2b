"""Which memory format a model is faster in, as measured."""

from typing import Literal

import torch
from torch import nn

from ...errors import ArgumentError

MemoryFormat = Literal["auto", "channels_last", "contiguous"]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# Blocks that make a model slower in channels_last where batches are smaller than SMALL_BATCH: timm's split attention,
# which sums over the short axis of its splits, by 7 to 13 % (one thread, AVX-512). Everything else measured was as fast
# in it, or faster.
SMALL_BATCH = 4
SLOWER_IN_CHANNELS_LAST = ("SplitAttn",)


def require_memory_format(asked: object) -> None:
    """Raise ArgumentError if it is none."""
    if asked not in ("auto", *LAYOUTS):
        raise ArgumentError(f"memory_format={asked!r}: choose 'auto' or one of {list(LAYOUTS)}")


def layout_for(asked: MemoryFormat, model: nn.Module, batch: int) -> torch.memory_format:
    """The memory format asked for, or the better one for so many images."""
    if asked in LAYOUTS:
        return LAYOUTS[asked]
    blocks = {type(module).__name__ for module in model.modules()}
    slower = batch < SMALL_BATCH and not blocks.isdisjoint(SLOWER_IN_CHANNELS_LAST)
    return LAYOUTS["contiguous" if slower else "channels_last"]
