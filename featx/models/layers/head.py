"""From the deepest map to logits."""

from collections import OrderedDict

from torch import nn

from ...backbone import classifier
from .pool import global_pool


def pooled_head(chs: int, num_classes: int, pool: str, drop_rate: float) -> nn.Sequential:
    """(N, chs, H, W) to logits (N, num_classes), or pooled features if there are no classes; `fc` is its last layer."""
    return nn.Sequential(
        OrderedDict(
            global_pool=global_pool(pool),
            flatten=nn.Flatten(),
            drop=nn.Dropout(drop_rate),
            fc=classifier(chs, num_classes),
        )
    )
