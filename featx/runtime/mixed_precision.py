"""Which layers stay in float32 where a lower precision alone would change maps too much.

What the first layers lose is amplified by all that follow: in a trained MobileNetV2, bfloat16 leaves a cosine
similarity of 0.978 at the deepest level, and 0.999 with the first five of 51 layers in float32. Therefore a number of
first layers stays, the smallest that is enough by measurement.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .agreement import similarities
from .optimized import eager
from .passes.lowering import MixedPrecision, layers_in_order
from .watch import ForwardTrace, copy_of

# The cosine similarity that is wanted at every level.
WANTED = {torch.bfloat16: 0.999, torch.float16: 0.999, torch.int8: 0.99}
PART = 4  # of the layers, one in so many may stay
NEAR = 1.25  # times what so many layers leave lost is as good, where the similarity wanted cannot be had


def wanted_similarity(computes: torch.dtype, least: float | None) -> float:
    """The cosine similarity to reach at every level, which is no less than what the user asked for as the `least`."""
    return max(WANTED.get(computes, 0.0), least or 0.0)


def fewest(similarity: Callable[[int], float], layers: int, wanted: float) -> int:
    """How many first layers have to stay in float32, of which a part may.

    Args:
        similarity: By the number of layers that stay, the similarity of the least similar level.
        layers: How many there are.
        wanted: The similarity to reach. Where none of the numbers does, the smallest is taken that comes near to what
            the largest gives.
    """
    similarity, most = cache(similarity), layers // PART
    if most == 0 or similarity(0) >= wanted:
        return 0
    enough = 1
    while enough < most and similarity(enough) < wanted:
        enough = min(2 * enough, most)
    best = similarity(enough)
    goal = wanted if best >= wanted else 1 - NEAR * (1 - best)
    return bisect_left(range(enough), goal, key=similarity)


@torch.no_grad()
def mixed_precision(
    extractor: FeatureExtractWrapper, seen: ForwardTrace, images: Tensor, dtype: torch.dtype, wanted: float
) -> MixedPrecision:
    """Which layers of an extractor have to stay in float32 where the others compute in a lower precision of floats.

    Args:
        extractor: One whose norms have been folded, which stays as it is.
        seen: A forward before they were.
        images: (N, C, H, W), to measure on.
        dtype: The lower precision.
        wanted: The cosine similarity to reach at every level.
    """
    layers, expected = layers_in_order(extractor, seen), maps_in(extractor(images))

    def similarity(count: int) -> float:
        made, mixed = copy_of(extractor), MixedPrecision(layers, count)
        try:
            maps = maps_in(eager(made, dtype, torch.channels_last, mixed, images)(images))
        except RuntimeError:  # code of the model that takes no tensors of two dtypes together
            return -1.0
        return min(similarities(maps, expected))

    return MixedPrecision(layers, fewest(similarity, len(layers), wanted))
