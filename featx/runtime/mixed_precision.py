"""Selection of the layers that stay in float32, for networks whose maps a lower precision would change too much.

Some layers lose more precision than others: in bfloat16 the first ones, because all later layers amplify their rounding
errors. In a trained MobileNetV2, bfloat16 has a cosine similarity of 0.984 with float32 at the deepest level, and 0.999
if the first 6 of its 51 layers stay in float32. A few numbers of layers are measured, and the smallest one that reaches
a target similarity is selected.
"""

from collections.abc import Callable

import torch

Layers = tuple[str, ...]
TARGETS = {torch.bfloat16: 0.999, torch.float16: 0.999, torch.int8: 0.99}  # cosine similarity at every level
DIVISORS = (16, 8, 4)  # of the number of all layers, which give the numbers to measure
NEAR = 1.25  # if no number reaches the target: the smallest one with up to this multiple of the smallest loss


def target_similarity(computes: torch.dtype, min_agreement: float | None) -> float:
    """The cosine similarity to reach at every level: that of the precision, or the user's minimum if it is higher."""
    return max(TARGETS.get(computes, 0.0), min_agreement or 0.0)


def kept_layers(order: Callable[[], Layers], similarity: Callable[[Layers], float], target: float) -> Layers:
    """Return the layers that stay in float32, at most a quarter of all.

    Args:
        order: Returns all layers, those to keep first at the start. It is not called if no layer has to stay.
        similarity: Builds the model with these layers in float32, and returns the cosine similarity of its least
            similar level. It is called four times at most.
        target: The similarity to reach. If no number of layers reaches it, the smallest number that comes close to the
            best one is selected.
    """
    measured: dict[Layers, float] = {}

    def reaches_target(kept: Layers) -> bool:
        reached = similarity(kept)
        measured[kept] = reached if reached > -1 else -1.0  # NaN if maps overflow
        return reached >= target

    if reaches_target(()):
        return ()
    layers = order()
    for count in sorted({len(layers) // divisor for divisor in DIVISORS} - {0}):
        if reaches_target(layers[:count]):
            return layers[:count]
    close = 1 - NEAR * (1 - max(measured.values()))
    return next(kept for kept, reached in measured.items() if reached >= close)
