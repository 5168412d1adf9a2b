"""Which layers stay in float32 where a lower precision alone would change the maps too much.

Some layers lose more than others: in bfloat16 the first ones, whose rounding errors all later layers amplify. In a
trained MobileNetV2, bfloat16 has a cosine similarity of 0.984 to float32 at the deepest level, and 0.999 if the first 6
of its 51 layers stay in float32. Of a few numbers of layers, the smallest that reaches a similarity by measurement is
kept.
"""

from collections.abc import Callable

import torch

Layers = tuple[str, ...]
WANTED = {torch.bfloat16: 0.999, torch.float16: 0.999, torch.int8: 0.99}  # cosine similarity at every level
PARTS = (16, 8, 4)  # one in so many layers is tried
NEAR = 1.25  # where none reaches the similarity: times the smallest loss of all, which fewer layers may have


def wanted_similarity(computes: torch.dtype, least: float | None) -> float:
    """The cosine similarity to reach at every level: that of the precision, or the user's minimum if it is higher."""
    return max(WANTED.get(computes, 0.0), least or 0.0)


def kept_layers(order: Callable[[], Layers], similarity: Callable[[Layers], float], wanted: float) -> Layers:
    """Return the layers that stay in float32; at most a quarter of all.

    Args:
        order: Returns all layers, the ones to keep first. It is not called if no layer has to stay.
        similarity: Builds the model with these layers in float32, and returns the similarity of its least similar
            level. It is called four times at most.
        wanted: The similarity to reach. If no number of layers reaches it, the smallest number is taken that comes
            close to the best one.
    """
    found: dict[Layers, float] = {}

    def is_enough(kept: Layers) -> bool:
        reached = similarity(kept)
        found[kept] = reached if reached > -1 else -1.0  # NaN where maps overflow
        return reached >= wanted

    if is_enough(()):
        return ()
    layers = order()
    for count in sorted({len(layers) // part for part in PARTS} - {0}):
        if is_enough(layers[:count]):
            return layers[:count]
    close = 1 - NEAR * (1 - max(found.values()))
    return next(kept for kept, reached in found.items() if reached >= close)
