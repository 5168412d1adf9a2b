"""From a map to what is stored of it: the map itself, or one vector."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..errors import ArgumentError
from .recipe import Pooling

GEM_POWER = 3.0  # Radenovic et al., https://arxiv.org/abs/1711.02512
GEM_LEAST = 1e-6  # what it replaces values below by, since it takes roots


def _gem(map_: Tensor) -> Tensor:
    """(n, chs, h, w) to (n, chs): the cube root of the mean cube, of positive values."""
    return map_.clamp(min=GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


OF_MAPS: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "none": lambda map_: map_,
    "mean": lambda map_: map_.mean((2, 3)),
    "max": lambda map_: map_.amax((2, 3)),
    "gem": _gem,
    "pre_logits": lambda map_: map_.flatten(1),  # one cell, see `PreLogits`
}


def pooled(returned: Tensor | tuple[Tensor, Tensor], pooling: Pooling) -> Tensor:
    """What is stored of a level: its map (n, chs, h, w), or (n, chs).

    returned: the map, or the pair of prefix tokens (n, tokens, chs) and map. ArgumentError for "cls" without tokens.
    """
    tokens, map_ = returned if isinstance(returned, tuple) else (None, returned)
    if pooling != "cls":
        return OF_MAPS[pooling](map_)
    if tokens is None or tokens.shape[1] == 0:
        raise ArgumentError(
            "pooling 'cls' takes a transformer's class token, and this extractor returns none: choose 'mean', or make "
            'it of a model with a class token and output="tokens"'
        )
    return tokens[:, 0]
