"""The proof that a model keeps the contract: shapes, order and names, without computing anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from .backbone import Backbone
from .errors import ContractError
from .features import Levels
from .wrappers import FeatureExtractWrapper
from .wrappers.extractor import maps_in
from .wrappers.order import meta_images, run_on_meta

Size = tuple[int, int]
SIZES: tuple[Size, ...] = ((224, 224), (192, 256), (223, 225), (200, 232), (97, 161))


@dataclass(frozen=True, slots=True)
class Verification:
    """What was proven: for each image size (height, width), the (h, w) of each level's map.

    corrections: where `levels` tell the truth and another package's own declaration does not.
    """

    levels: Levels
    sizes: dict[Size, tuple[Size, ...]]
    corrections: tuple[str, ...] = ()


def verify(model: nn.Module, sizes: Sequence[Size] = SIZES) -> Verification:
    """Run shapes, without values, through all levels of `model` at `sizes` (pixels), and check them.

    `model` is a model with `feature_info`, or a feature extractor. Proven are: one map per level, in their order and in
    the reversed one, (N, chs, h, w) with h and w as the family's size rule says (without a rule: H / reduction rounded
    down or up); names and shapes of all parameters as in the full model. Sizes that are no multiples of the model's
    `size_divisor` are left out; one that takes a single size is run at that. Raises ContractError listing everything
    that is not so.
    """
    extractor = model if isinstance(model, FeatureExtractWrapper) else FeatureExtractWrapper(model)
    divisor = extractor.size_divisor
    fixed = extractor._inner.fixed_size
    taken = [size for size in sizes if all(side % divisor == 0 for side in size)] if fixed is None else [fixed]
    problems = list(_foreign_keys(model, extractor))
    shapes = {size: _shapes(extractor, size) for size in taken}
    problems += [problem for size in taken for problem in _wrong_maps(extractor, size, shapes[size])]
    if not isinstance(model, FeatureExtractWrapper):
        backwards = FeatureExtractWrapper(model, range(len(extractor.feature_info))[::-1])
        if taken and _shapes(backwards, taken[0]) != shapes[taken[0]][::-1]:
            problems.append("the maps of reversed out_indices are not the reversed maps")
    if problems:
        name = type(extractor._source).__name__
        raise ContractError(f"{name} breaks the contract:\n" + "\n".join(f"  {problem}" for problem in problems))
    cells = {size: tuple((h, w) for _, _, h, w in shapes[size]) for size in taken}
    return Verification(extractor.feature_info, cells, extractor._inner.corrections)


def _shapes(extractor: FeatureExtractWrapper, size: Size) -> list[tuple[int, ...]]:
    maps = run_on_meta(extractor, meta_images(extractor, size))
    return [tuple(map_.shape) for map_ in maps_in(maps)]


def _wrong_maps(extractor: FeatureExtractWrapper, size: Size, shapes: list[tuple[int, ...]]) -> Iterator[str]:
    source = extractor._source
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


def _foreign_keys(model: nn.Module, extractor: FeatureExtractWrapper) -> Iterator[str]:
    full = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in extractor.state_dict().items():
        if full.get(name) != tensor.shape:
            yield f"{name} of the extractor is no parameter of the model, or has another shape there"
