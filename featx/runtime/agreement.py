"""Whether what was built computes the model's maps: both run on the same images before anybody gets it."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ArgumentError, ContractError, InputError
from ..wrappers import FeatureExtractWrapper
from ..wrappers.extractor import maps_in
from .watch import copy_of

WRONG = 1e-3  # of the largest value: what other kernels and orders of summation do stays below 1e-4
ALIKE = 0.9  # cosine similarity where values of 16 bits or another device round otherwise
LOWER = (torch.int8, torch.bfloat16, torch.float16)  # precisions that maps are measured in, not proved
WORSE = 0.25  # what a lower precision may lose in cosine similarity from one size of images to another


def require_min_agreement(least: float | None, computes: torch.dtype | None) -> None:
    """Raise ArgumentError for a `min_agreement` that is none, or that nothing is compared with in this precision."""
    if least is None:
        return
    if isinstance(least, bool) or not isinstance(least, float | int) or not 0 < least <= 1:
        raise ArgumentError(f"min_agreement={least!r}: expected a cosine similarity above 0 and up to 1, such as 0.99")
    if computes not in LOWER:
        raise ArgumentError(
            f"min_agreement={least} is for a lower precision than float32: pass dtype=torch.bfloat16 or torch.int8 "
            "with it, or leave it out, because maps in the model's own precision are always compared with its own"
        )


def require_agreement(found: dict[str, float] | None, least: float | None) -> None:
    """Raise ContractError if the map of a level is less similar to the model's than was asked for."""
    if least is None or found is None:
        return
    name = min(found, key=lambda level: found[level])
    if found[name] < least:
        raise ContractError(
            f"the map {name} has a cosine similarity of {found[name]:.5f} to the model's, and min_agreement={least} "
            "was asked for: pass more or other images as example=, which int8 is calibrated on, or choose "
            "dtype=torch.bfloat16 or torch.float32"
        )


@torch.no_grad()
def agreement(optimized: FeatureExtractWrapper, original: FeatureExtractWrapper, images: Tensor) -> dict[str, float]:
    """By level, the cosine similarity of the two extractors' maps of the same images; 1 is the same direction."""
    return _cosines(original, maps_in(optimized(images)), maps_in(original(images)))


def similarities(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> list[float]:
    """The cosine similarity of each map with its counterpart."""
    pairs = zip(ours, theirs, strict=True)
    return [F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item() for a, b in pairs]


def _cosines(original: FeatureExtractWrapper, ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    return dict(zip(original.feature_info.names(), similarities(ours, theirs), strict=True))


def smooth_noise(like: Tensor) -> Tensor:
    """Random images of that shape with structure: neighbouring pixels are alike, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(*like.shape[:2], 8, 8, generator=generator)
    fine = torch.randn(like.shape, generator=generator)
    smooth = F.interpolate(coarse, like.shape[2:], mode="bilinear")
    return (smooth + 0.1 * fine).to(like.device, like.dtype)


@torch.no_grad()
def compared(
    made: FeatureExtractWrapper,
    model: FeatureExtractWrapper,
    like: Tensor,
    example: Tensor | None,
    computes: torch.dtype,
) -> dict[str, float] | None:
    """How similar maps are, in a lower precision than the model's; None in the same, where float32 has to be equal.

    like: images of the shape to compare at where there is no example. Then both run on another number of images, and on
    two other sizes where they take those. Raises ContractError for maps that are not the model's, and ArgumentError for
    a model whose own maps are not finite.
    """
    model = copy_of(model, shares=True)  # which a capture of attention does not see
    lower = computes.itemsize < like.dtype.itemsize
    first = smooth_noise(like) if example is None else example
    if not lower and takes(made, (1, *first.shape[1:])):
        first = first[:1]
    expected = maps_in(model(first))
    for name, map_ in zip(model.feature_info.names(), expected, strict=True):
        if not map_.isfinite().all():
            raise ArgumentError(f"the model's own map {name} holds values that are not finite: look at its weights")
    found = _checked(made, model, first, expected, computes, None)
    number = len(first if example is None else example)
    if number > len(first) and _is_of_shape(made):
        repeated = [map_.expand(number, -1, -1, -1) for map_ in expected]
        _checked(made, model, first.expand(number, -1, -1, -1), repeated, computes, found)
    for images in _others(made, model, first):
        try:
            expected = maps_in(model(images))
        except InputError:  # the model takes no such size
            continue
        _checked(made, model, images, expected, computes, found)
    return found if lower else None


def takes(made: FeatureExtractWrapper, shape: tuple[int, ...]) -> bool:
    """Whether what was built says that it takes images (N, C, H, W) of that shape."""
    said = getattr(made._inner, "said", None)
    return said is None or shape in said.guard


def _is_of_shape(made: FeatureExtractWrapper) -> bool:
    return getattr(getattr(made._inner, "engine", None), "is_of_shape", False)


def _others(made: FeatureExtractWrapper, model: FeatureExtractWrapper, first: Tensor) -> Iterator[Tensor]:
    """Images of another number, and of small sizes beside: odd sides, and even ones."""
    chs, height, width = first.shape[1:]
    cell = max(model._smallest, max(model.feature_info.reduction()))
    step = model.size_divisor
    sizes = [(height, width)]
    if model._inner.fixed_size is None:
        sizes = [(2 * cell + 1, 3 * cell + 3), (3 * cell, 2 * cell)]
    for number, sides in zip((2, 1), sizes, strict=False):
        shape = (number, chs, *(-(-side // step) * step for side in sides))
        if takes(made, shape):
            images = first[:number] if len(first) >= number else torch.cat([first, first.flip(3)])
            yield F.interpolate(images, shape[2:], mode="bilinear")  # of the values that int8 is calibrated for


def _checked(
    made: FeatureExtractWrapper,
    model: FeatureExtractWrapper,
    images: Tensor,
    expected: list[Tensor],
    computes: torch.dtype,
    known: dict[str, float] | None,
) -> dict[str, float]:
    """The cosine similarity of the maps; ContractError if they are not the model's. known: that of other images."""
    where = f"for {images.shape[0]} of {images.shape[2]}x{images.shape[3]} pixels"
    try:
        maps = maps_in(made(images))
    except RuntimeError as error:
        told = f"{error}".strip().partition("\n")[0]
        raise ContractError(f"the runtime cannot run the model {where} ({told}): choose another runtime") from error
    shapes = [tuple(map_.shape) for map_ in expected]
    if shapes != [tuple(map_.shape) for map_ in maps]:
        raise ContractError(f"the runtime gives maps of other shapes than {shapes} {where}: choose another runtime")
    cosines = _cosines(model, maps, expected)
    for name, map_, true in zip(cosines, maps, expected, strict=True):
        problem = _difference(map_, true, images, computes, cosines[name], (known or {}).get(name))
        if problem:
            raise ContractError(
                f"the map {name} {problem} {where}, because the runtime computes something in it otherwise: choose "
                "another runtime"
            )
    return cosines


def _difference(
    map_: Tensor, true: Tensor, images: Tensor, computes: torch.dtype, cosine: float, known: float | None
) -> str:
    """What is wrong with a map; nothing if it is the model's."""
    largest = true.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    if computes.itemsize >= torch.float32.itemsize and images.device.type == "cpu":
        difference = ((map_ - true).abs().max() / largest).item()
        return "" if difference < WRONG else f"differs by {difference:.1e} of its largest value from the model's"
    least = -1.0 if known is None else known - WORSE
    if computes.itemsize >= images.dtype.itemsize:
        least = ALIKE  # every order of summation gives other values, and so may TensorFloat-32
    alike = cosine >= least or not true.any()
    return "" if alike else f"has a cosine similarity of {cosine:.2f} to the model's"
