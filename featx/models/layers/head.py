"""From the last map to logits."""

from collections import OrderedDict

from torch import Tensor, nn

from ...backbone import classifier
from .pool import flatten, global_pool, pooled_chs


class Head(nn.Sequential):
    """Layers in their order, of which the last is the classifier."""

    def forward(self, input: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with `pre_logits` what enters the last layer."""
        x, *layers = input, *self
        for layer in layers[:-1] if pre_logits else layers:
            x = layer(x)
        return x


def pooled_head(chs: int, num_classes: int, pool: str, drop_rate: float) -> Head:
    """(N, chs, H, W) to logits (N, num_classes), or pooled features if there are no classes; `fc` is its last layer."""
    return Head(
        OrderedDict(
            global_pool=global_pool(pool),
            flatten=flatten(pool),
            drop=nn.Dropout(drop_rate),
            fc=classifier(pooled_chs(chs, pool), num_classes, pool),
        )
    )


HEAD_POOL = ("head.global_pool", "head.flatten")  # where `pooled_head`, registered as `head`, has them
