"""Global pooling, and layers from pooled features to logits."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ...backbone import classifier
from ...errors import ArgumentError

DOUBLING = ("catavgmax",)
HEAD_POOL = ("head.global_pool", "head.flatten")  # where `pooled_head`, registered as `head`, has them


class AverageMaxPool(nn.Module):
    """The mean of average and max pooling: (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x.mean((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True))


class CatAverageMaxPool(nn.Module):
    """Average and max pooling, concatenated: (N, C, H, W) to (N, 2 * C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)), 1)


POOLS = {
    "avg": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
    "avgmax": AverageMaxPool,
    "catavgmax": CatAverageMaxPool,
    "": nn.Identity,
}


def global_pool(kind: str) -> nn.Module:
    """Global pool: (N, C, H, W) to (N, pooled_chs, 1, 1), or the identity for "". ArgumentError for an unknown kind."""
    if not isinstance(kind, str) or kind not in POOLS:
        raise ArgumentError(f"global_pool={kind!r}: choose one of {list(POOLS)}")
    return POOLS[kind]()


def pooled_chs(chs: int, kind: str) -> int:
    """Channels after the pool of a map with `chs` channels."""
    return 2 * chs if kind in DOUBLING else chs


def flatten(kind: str) -> nn.Module:
    """The layer (N, C, 1, 1) to (N, C) after a pool, or the identity without one."""
    return nn.Flatten() if kind else nn.Identity()


class Head(nn.Sequential):
    """A sequence of layers, the last of which is the classifier."""

    def forward(self, input: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with `pre_logits` the input of the last layer."""
        x, *layers = input, *self
        for layer in layers[:-1] if pre_logits else layers:
            x = layer(x)
        return x


def pooled_head(chs: int, num_classes: int, pool: str, drop_rate: float) -> Head:
    """Head (N, chs, H, W) to logits (N, num_classes), or pooled features without classes; `fc` is its last layer."""
    return Head(
        OrderedDict(
            global_pool=global_pool(pool),
            flatten=flatten(pool),
            drop=nn.Dropout(drop_rate),
            fc=classifier(pooled_chs(chs, pool), num_classes, pool),
        )
    )
