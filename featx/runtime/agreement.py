"""Comparison of a built extractor's maps with the original model's, before the extractor is returned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, ContractError, InputError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .description import Description
from .sample_trace import inference_copy

WRONG = 1e-3  # of the largest value; other kernels and summation orders differ by less than 1e-4
ALIKE = 0.9  # cosine similarity, in 16 bits or on another device, where rounding differs
LOWER = (torch.int8, torch.bfloat16, torch.float16)  # precisions whose agreement is reported
WORSE = 0.25  # largest drop in cosine similarity, in a lower precision, from one image size to another


def require_min_agreement(least: float | None, computes: torch.dtype | None) -> None:
    """Raise ArgumentError if `min_agreement` is not a cosine similarity, or if the precision is not a lower one."""
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, float | int) or not 0 < least <= 1:
        raise ArgumentError(f"min_agreement={least!r}: expected a cosine similarity above 0 and up to 1, such as 0.99")
    if computes not in LOWER:
        raise ArgumentError(
            f"min_agreement={least} is for a lower precision than float32: pass dtype=torch.bfloat16 or torch.int8 "
            "with it, or leave it out, because maps in the model's own precision are always compared with its own"
        )


def require_agreement(cosines: dict[str, float] | None, least: float | None) -> None:
    """Raise ContractError if the cosine similarity of a level is below the minimum that the user set."""
    if least is None or cosines is None:
        return
    name = min(cosines, key=cosines.__getitem__)
    if cosines[name] < least:
        raise ContractError(
            f"the map {name} has a cosine similarity of {cosines[name]:.5f} to the model's, and min_agreement={least} "
            "was asked for: pass more or other images as example=, which int8 is calibrated on, or choose "
            "dtype=torch.bfloat16 or torch.float32"
        )


@torch.no_grad()
def agreement(optimized: FeatureExtractWrapper, original: FeatureExtractWrapper, images: Tensor) -> dict[str, float]:
    """The cosine similarity of two extractors' maps of the same images (N, in_chans, H, W), by level."""
    return _cosines(original, maps_in(optimized(images)), maps_in(original(images)))


def similarities(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> list[float]:
    """The cosine similarity of each pair of tensors."""
    pairs = zip(ours, theirs, strict=True)
    return [F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item() for a, b in pairs]


def _cosines(original: FeatureExtractWrapper, ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    return dict(zip(original.feature_info.names(), similarities(ours, theirs), strict=True))


def smooth_noise(like: Tensor) -> Tensor:
    """Random images of the same shape, dtype and device, in which neighboring pixels are similar, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(*like.shape[:2], 8, 8, generator=generator)
    fine = torch.randn(like.shape, generator=generator)
    smooth = F.interpolate(coarse, like.shape[2:], mode="bilinear")
    return (smooth + 0.1 * fine).to(like.device, like.dtype)


@torch.no_grad()
def check_maps(
    built: FeatureExtractWrapper,
    model: FeatureExtractWrapper,
    like: Tensor,
    example: Tensor | None,
    computes: torch.dtype,
) -> dict[str, float] | None:
    """Compare the maps of a built extractor with those of the original model.

    Both run on the example or on noise, then on another batch size, and on two other image sizes if they accept them.

    Args:
        built: The built extractor.
        model: The original model.
        like: Images of the shape to compare on if there is no example.
        example: Images (N, in_chans, H, W), or None.
        computes: The dtype in which the built extractor computes.

    Returns:
        The cosine similarity by level if `computes` is a lower precision than that of `like`; else None, because values
        were compared.

    Raises:
        ArgumentError: The model's own maps are not finite.
        ContractError: The maps differ.
    """
    model = inference_copy(model, shares=True)  # attention capture of the model ignores its forwards
    is_lower = computes.itemsize < like.dtype.itemsize
    first = smooth_noise(like) if example is None else example
    if not is_lower and accepts(built, (1, *first.shape[1:])):
        first = first[:1]
    expected = maps_in(model(first))
    for name, map_ in zip(model.feature_info.names(), expected, strict=True):
        if not map_.isfinite().all():
            raise ArgumentError(f"the model's own map {name} holds values that are not finite: look at its weights")
    check = _Check(built, model, computes)
    cosines = check.compare(first, expected)
    check = replace(check, known=cosines)
    batch = len(first if example is None else example)
    if batch > len(first) and getattr(getattr(built._inner, "engine", None), "is_shape_specific", False):
        check.compare(first.expand(batch, -1, -1, -1), [map_.expand(batch, -1, -1, -1) for map_ in expected])
    for images in _other_images(built, model, first):
        try:
            expected = maps_in(model(images))
        except InputError:  # the model does not support this size
            continue
        check.compare(images, expected)
    return cosines if is_lower else None


def accepts(built: FeatureExtractWrapper, shape: tuple[int, ...]) -> bool:
    """Whether the description of a built extractor, if it has one, allows images of this shape (N, C, H, W)."""
    description = getattr(built._inner, "description", None)
    return not isinstance(description, Description) or shape in description.guard


def _other_images(built: FeatureExtractWrapper, model: FeatureExtractWrapper, first: Tensor) -> Iterator[Tensor]:
    """Images of another batch size and, without a fixed size, of small sizes: two of odd sides, one of even sides."""
    chs, height, width = first.shape[1:]
    cell = max(model._smallest, max(model.feature_info.reduction()))
    step = model.size_divisor
    sizes = [(height, width)]
    if model._inner.fixed_size is None:
        sizes = [(2 * cell + 1, 3 * cell + 3), (3 * cell, 2 * cell)]
    for batch, sides in zip((2, 1), sizes, strict=False):
        shape = (batch, chs, *(-(-side // step) * step for side in sides))
        if accepts(built, shape):
            images = first[:batch] if len(first) >= batch else torch.cat([first, first.flip(3)])
            yield F.interpolate(images, shape[2:], mode="bilinear")  # with the values that int8 is calibrated for


@dataclass(frozen=True)
class _Check:
    """Comparison of maps; `known` has the cosine similarity by level on other images, or is None."""

    built: FeatureExtractWrapper
    model: FeatureExtractWrapper
    computes: torch.dtype
    known: dict[str, float] | None = None

    def compare(self, images: Tensor, expected: list[Tensor]) -> dict[str, float]:
        """The cosine similarity by level; ContractError if maps differ."""
        where = f"for {images.shape[0]} of {images.shape[2]}x{images.shape[3]} pixels"
        try:
            maps = maps_in(self.built(images))
        except RuntimeError as error:
            reason = f"{error}".strip().partition("\n")[0]
            raise ContractError(
                f"the runtime cannot run the model {where} ({reason}): choose another runtime"
            ) from error
        shapes = [tuple(map_.shape) for map_ in expected]
        if shapes != [tuple(map_.shape) for map_ in maps]:
            raise ContractError(f"the runtime gives maps of other shapes than {shapes} {where}: choose another runtime")
        cosines = _cosines(self.model, maps, expected)
        for name, map_, true in zip(cosines, maps, expected, strict=True):
            difference = self._difference(name, map_, true, images, cosines[name])
            if difference:
                raise ContractError(
                    f"the map {name} {difference} {where}, because the runtime computes some operation of it "
                    "differently: choose another runtime"
                )
        return cosines

    def _difference(self, name: str, map_: Tensor, true: Tensor, images: Tensor, cosine: float) -> str:
        """How a map differs from the model's; "" if it does not."""
        largest = true.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        if self.computes.itemsize >= torch.float32.itemsize and images.device.type == "cpu":
            difference = ((map_ - true).abs().max() / largest).item()
            return "" if difference < WRONG else f"differs by {difference:.1e} of its largest value from the model's"
        least = -1.0 if self.known is None else self.known[name] - WORSE
        if self.computes.itemsize >= images.dtype.itemsize:
            least = ALIKE  # rounding depends on the summation order, and TensorFloat-32 may be in use
        is_alike = cosine >= least or not true.any()
        return "" if is_alike else f"has a cosine similarity of {cosine:.2f} to the model's"
