"""What each head of a block attends to, on the photograph."""

import torch
from torch import Tensor

from ..attention import capture_attention
from ..attention.blocks import blocks_of
from ..errors import ArgumentError
from ..viz.attended import heads_of, patches_in
from ..viz.points import Point
from ..wrappers import FeatureExtractWrapper


def blocks(extractor: FeatureExtractWrapper) -> list[str]:
    """Names of the blocks with attention; ContractError if there is none."""
    return [block.name for block in blocks_of(extractor)]


def attended(
    extractor: FeatureExtractWrapper, image: Tensor, block: str | None, point: Point | None
) -> tuple[Tensor, str]:
    """Attention of each head over the image, (heads, h, w), and the words for where it looks from.

    extractor: with `output="tokens"`. image: (1, 3, H, W). point: shares of width and height, whose patch looks;
    without one it is the class token, or the mean over all patches where there is none. Raises ArgumentError for a
    block that the model has not, ContractError for a model without attention and where the keys are no grid over the
    image, as in windows.
    """
    known = blocks(extractor)
    if block not in known:
        raise ArgumentError(f"choose one of the blocks with attention: {', '.join(known)}")
    with torch.inference_mode(), capture_attention(extractor, [block]) as seen:
        pairs: list[tuple[Tensor, Tensor]] = list(extractor(image))
    map_, patches = seen.maps[block], patches_in(seen, block, pairs)
    if not patches.queried_in(map_):  # the same scores for whatever asks
        return heads_of(map_, patches), "all pixels"
    by_pixel = len(map_) > 1
    if point is not None:
        return heads_of(map_, patches, point), "the pixel clicked" if by_pixel else "the patch clicked"
    looks = "all pixels" if by_pixel else "the class token" if patches.prefix else "all patches"
    return heads_of(map_, patches), looks
