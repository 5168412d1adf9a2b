"""How far maps in a lower precision agree with the original's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ContractError
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


WRONG = 1e-3  # of the largest value: what other kernels and orders of summation do stays below 1e-4


def compared(
    made: FeatureExtractWrapper,
    model: FeatureExtractWrapper,
    like: Tensor,
    example: Tensor | None,
    computes: torch.dtype,
) -> dict[str, float] | None:
    """How similar maps are, in a lower precision than the model's; None in the same, where float32 has to be equal.

    like: the shape of images where there is no example. Raises ContractError for maps that are not the model's.
    """
    images = smooth_noise(like) if example is None else example
    if computes.itemsize < like.dtype.itemsize:
        return agreement(made, model, images)
    if computes.itemsize < torch.float32.itemsize or like.device.type != "cpu":
        return None  # where every order of summation gives other values, and so may TensorFloat-32
    for name, difference in differences(made, model, images).items():
        if not difference < WRONG:
            raise ContractError(
                f"the map {name} differs by {difference:.1e} of its largest value from the model's, because the "
                "runtime computes something in it otherwise: choose another runtime"
            )
    return None


@torch.no_grad()
def differences(made: FeatureExtractWrapper, model: FeatureExtractWrapper, images: Tensor) -> dict[str, float]:
    """By level, the largest difference of the two extractors' maps, relative to the largest value of the second's."""
    pairs = zip(model.feature_info.names(), maps_in(made(images)), maps_in(model(images)), strict=True)
    tiny = torch.finfo(torch.float32).tiny
    return {name: ((a - b).abs().max() / b.abs().max().clamp(min=tiny)).item() for name, a, b in pairs}
