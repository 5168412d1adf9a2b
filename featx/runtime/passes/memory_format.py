"""Selection of the memory format in which a model is faster, according to measurements."""

from typing import Literal

import torch
from torch import nn

from ...errors import ArgumentError

MemoryFormat = Literal["auto", "channels_last", "contiguous"]
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}

# Blocks that are slower in channels_last if the batch is smaller than SMALL_BATCH: timm's split attention, which sums
# over the short axis of its splits, makes models 7 to 13 % slower (one thread, AVX-512). All other measured models were
# at least as fast in channels_last.
SMALL_BATCH = 4
SLOWER_IN_CHANNELS_LAST = ("SplitAttn",)


def require_memory_format(memory_format: object) -> None:
    """Raise ArgumentError for anything but a MemoryFormat."""
    if memory_format not in ("auto", *LAYOUTS):
        raise ArgumentError(f"memory_format={memory_format!r}: choose 'auto' or one of {list(LAYOUTS)}")


def layout_for(memory_format: MemoryFormat, model: nn.Module, batch: int) -> torch.memory_format:
    """PyTorch's memory format of that name; for "auto", the faster one for a batch of `batch` images."""
    if memory_format in LAYOUTS:
        return LAYOUTS[memory_format]
    blocks = {type(module).__name__ for module in model.modules()}
    slower = batch < SMALL_BATCH and not blocks.isdisjoint(SLOWER_IN_CHANNELS_LAST)
    return LAYOUTS["contiguous" if slower else "channels_last"]
