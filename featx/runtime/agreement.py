"""How far maps in a lower precision agree with the original's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in


@torch.no_grad()
def agreement(optimized: FeatureExtractWrapper, original: FeatureExtractWrapper, images: Tensor) -> dict[str, float]:
    """By level, the cosine similarity of the two extractors' maps of the same images; 1 is the same direction."""
    pairs = zip(maps_in(optimized(images)), maps_in(original(images)), strict=True)
    cosines = [F.cosine_similarity(ours.double().flatten(), true.double().flatten(), dim=0) for ours, true in pairs]
    return {name: cosine.item() for name, cosine in zip(original.feature_info.names(), cosines, strict=True)}


def smooth_noise(like: Tensor) -> Tensor:
    """Random images of that shape with structure: neighbouring pixels are alike, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(*like.shape[:2], 8, 8, generator=generator)
    fine = torch.randn(like.shape, generator=generator)
    smooth = F.interpolate(coarse, like.shape[2:], mode="bilinear")
    return (smooth + 0.1 * fine).to(like.device, like.dtype)
