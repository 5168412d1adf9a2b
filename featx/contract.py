"""Verification of a model against the feature contract: shapes, order, names, and optionally values and positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .arguments import require_module, require_size, require_strings
from .backbone import Backbone
from .errors import ContractError, InputError, shortened
from .features import Levels
from .place_proof import misplaced, proof_sizes
from .tracing.copies import structural_copy, without_values
from .tracing.execution_order import channels_of, meta_images, run_on_meta
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import maps_in

Size = tuple[int, int]
Shapes = list[tuple[int, ...]]
SIDES = "pairs (height, width) in pixels"
SIZES: tuple[Size, ...] = ((224, 224), (192, 256), (223, 225), (200, 232), (97, 161))


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """The result of `verify`.

    Attributes:
        levels: the verified levels.
        sizes: for each image size (height, width) in pixels, the (h, w) of each level's map in cells.
        corrections: facts in which `levels` differ from another package's incorrect declaration.
        refused: image sizes that the model does not accept, with its error messages.
        places: image sizes at which a change of the image was traced to its cell in every map; empty without `values`.
    """

    levels: Levels
    sizes: dict[Size, tuple[Size, ...]]
    corrections: tuple[str, ...] = ()
    refused: dict[Size, str] = field(default_factory=dict)
    places: tuple[Size, ...] = ()

    def __repr__(self) -> str:
        counts = {"sizes refused": self.refused, "sizes with values": self.places, "corrections": self.corrections}
        others = "".join(f", {len(found)} {kind}" for kind, found in counts.items() if found)
        return f"Verification({len(self.levels)} levels at {len(self.sizes)} image sizes{others})"


def verify(model: nn.Module, sizes: Sequence[Size] = SIZES, *, values: bool = False) -> Verification:
    """Check that a model keeps the feature contract at several image sizes, on the meta device.

    Checked with a batch of two images, in training and evaluation mode: the model returns one map per level, in the
    order of the levels and in reverse; each map is (N, chs, h, w), with h and w from the family's size rule, or
    H / reduction rounded down or up without a rule; names and shapes of all parameters equal the full model's.

    Args:
        model: a model with `feature_info`, or a feature extractor.
        sizes: image sizes (height, width) in pixels. Sizes that are not multiples of the model's `size_divisor` are
            recorded as refused. A model with a fixed size is checked at that size only.
        values: also compute values. At the first size, maps must be equal, bit for bit, in a second run and in any
            order. At a square, a wide and a tall size that the model accepts, changing the pixels of one cell must
            change that cell of each map, and no other cell much more. This uses random weights in a copy of the model.

    Returns:
        What was checked.

    Raises:
        ContractError: the model breaks the contract, or accepts none of the sizes. The message lists all problems.
    """
    require_module(model)
    sizes = [require_size(size, "each of sizes") for size in require_strings(sizes, "sizes", (tuple, list), SIDES)]
    extractor = model if isinstance(model, FeatureExtractWrapper) else FeatureExtractWrapper(model)
    problems = list(_foreign_keys(model, extractor))
    twin = structural_copy(extractor, without_values)  # a copy: other threads may run the model at the same time
    shapes, refused = _shapes_by_size(twin, sizes)
    problems += [problem for size in shapes for problem in _wrong_maps(extractor, size, shapes[size])]
    if not shapes:
        problems.append(f"no images of any of the sizes {list(sizes)} could be run: {[*refused.values()][:1]}")
    backwards = None if extractor is model else FeatureExtractWrapper(model, range(len(extractor.feature_info))[::-1])
    for size in list(shapes)[:1]:
        problems += _wrong_modes(twin, size, shapes[size])
        problems += _wrong_order(backwards, size, shapes[size]) if backwards else []
        copies = [structural_copy(e).eval() if e else None for e in (extractor, backwards)] if values else []
        problems += _wrong_values(*copies, size) if copies else []
    places = proof_sizes(extractor) if values and not problems else []
    if values and not problems and not places:
        problems.append("it takes no size at which every map has two cells along a side: places cannot be compared")
    problems += misplaced(extractor, places)
    if problems:
        name = type(extractor.source).__name__
        raise ContractError(f"{name} breaks the contract:\n" + "\n".join(f"  {line}" for line in shortened(problems)))
    cells = {size: tuple((h, w) for _, _, h, w in shapes[size]) for size in shapes}
    return Verification(extractor.feature_info, cells, extractor.corrections, refused, tuple(places))


def _shapes_by_size(
    extractor: FeatureExtractWrapper, sizes: Sequence[Size]
) -> tuple[dict[Size, Shapes], dict[Size, str]]:
    """The shapes of the maps by image size, and the model's error messages for the sizes that it refuses."""
    fixed, divisor = extractor.fixed_size, extractor.size_divisor
    shapes: dict[Size, Shapes] = {}
    refused: dict[Size, str] = {}
    for size in sizes if fixed is None else [fixed]:
        if any(side % divisor for side in size):
            refused[size] = f"its sides must be multiples of {divisor}"
            continue
        try:
            shapes[size] = _shapes(extractor, size)
        except InputError as error:
            refused[size] = str(error)
    return shapes, refused


def _shapes(extractor: FeatureExtractWrapper, size: Size) -> Shapes:
    maps = run_on_meta(extractor, meta_images(extractor, size))
    return [tuple(map_.shape) for map_ in maps_in(maps)]


def _wrong_modes(twin: FeatureExtractWrapper, size: Size, shapes: Shapes) -> Iterator[str]:
    for mode in (True, False):
        if _shapes(twin.train(mode), size) != shapes:
            yield f"shapes of the maps depend on the mode: they are others with train({mode})"


def _wrong_order(backwards: FeatureExtractWrapper, size: Size, shapes: Shapes) -> Iterator[str]:
    if _shapes(backwards, size) != shapes[::-1]:
        yield "the maps of reversed out_indices are not the reversed maps"


def _wrong_maps(extractor: FeatureExtractWrapper, size: Size, shapes: Shapes) -> Iterator[str]:
    source = extractor.source
    if len(shapes) != len(extractor.feature_info):
        yield f"{len(shapes)} maps for {len(extractor.feature_info)} levels"
        return
    for level, shape in zip(extractor.feature_info, shapes, strict=True):
        if shape[:2] != (2, level.chs):
            yield f"{level.name} at {size}: shape {shape}, but feature_info says {level.chs} channels"
        for side, cells in zip(size, shape[2:], strict=True):
            floor, ceil = side // level.reduction, -(-side // level.reduction)
            allowed = {source.size_rule(side, level.reduction)} if isinstance(source, Backbone) else {floor, ceil}
            if cells not in allowed:
                yield f"{level.name} at {size}: {cells} cells for {side} pixels at 1/{level.reduction}"


def _wrong_values(
    extractor: FeatureExtractWrapper, backwards: FeatureExtractWrapper | None, size: Size
) -> Iterator[str]:
    """Differences of map values between runs, and between orders of the levels, in evaluation mode."""
    reference = next(extractor.parameters(), torch.empty(0))
    images = torch.randn(2, channels_of(extractor), *size, generator=torch.Generator().manual_seed(0)).to(reference)
    with torch.no_grad():
        first, second = (maps_in(extractor(images)) for _ in range(2))
        reverse = maps_in(backwards(images))[::-1] if backwards else first
    for level, map_, repeated, reversed_ in zip(extractor.feature_info, first, second, reverse, strict=True):
        if not torch.equal(map_, repeated):
            yield f"{level.name}: a second forward of the same images returns another map"
        if not torch.equal(map_, reversed_):
            yield f"{level.name}: the map differs if levels are requested in reverse order"


def _foreign_keys(model: nn.Module, extractor: FeatureExtractWrapper) -> Iterator[str]:
    full = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in extractor.state_dict().items():
        if full.get(name) != tensor.shape:
            yield f"{name} of the extractor is not a parameter of the model, or has another shape there"
