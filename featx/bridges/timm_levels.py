"""The levels of a model of timm as they are, which is not always as timm declares them."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..tracing.copies import meta_twin, structural_copy
from ..tracing.third_party_errors import REFUSED
from .timm_intermediates import tried

Size = tuple[int, int]
Maker = tuple[str, int]  # path of a module, position in what it returns

# Steps of autograd's graph that move values and compute none.
MOVES = ("View", "UnsafeView", "Reshape", "Permute", "Transpose", "T", "Slice", "Select", "Clone", "Alias", "Expand")
MOVES += ("Squeeze", "Unsqueeze", "Split", "SplitWithSizes", "Unbind", "AsStrided", "Unflatten", "Narrow", "Chunk")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run of the model showed.

    corrections: one sentence for each fact that timm declares otherwise.
    size: of the images the model is made for, (height, width).
    fixed: whether it takes no other.
    resizes: whether it takes others, but resizes them, so that no level has a reduction for them.
    on_meta: whether it runs without computing.
    """

    levels: Levels
    corrections: tuple[str, ...]
    size: Size
    fixed: bool
    resizes: bool
    on_meta: bool


@dataclass(frozen=True, slots=True)
class Run:
    """Shapes of the maps of one run, and for each the modules that put out its values, inner ones first."""

    shapes: tuple[tuple[int, ...], ...]
    makers: tuple[tuple[Maker, ...], ...]


@torch.inference_mode(False)
@torch.enable_grad()
def measure(model: nn.Module) -> Measured:
    """Run the model without computing at its own size and at a wider one, and compare with what timm declares.

    A model that cannot run without values is run on one black image. Raises ContractError if it has none.
    """
    from timm.models import get_model_input_config

    declared = declared_by(model)
    size: Size = tuple(get_model_input_config(model)["input_size"][-2:])
    twin, own = _run_somehow(model, size, len(declared))
    stretch = 2 * lcm(*(level.reduction for level in declared))
    wide = _attempt(twin, (size[0], size[1] + stretch), len(declared))
    grown = [0] if isinstance(wide, Exception) else [b[3] - a[3] for a, b in zip(own.shapes, wide.shapes, strict=True)]
    fixed = 0 in grown
    strides = [
        _stride(size, shape, level.reduction) if fixed else stretch // grown[i]
        for i, (shape, level) in enumerate(zip(own.shapes, declared, strict=True))
    ]
    names = _names(model, declared, own.makers)
    levels = [FeatureInfo(shape[1], r, name) for shape, r, name in zip(own.shapes, strides, names, strict=True)]
    differences, on_meta = tuple(_differences(declared, levels)), next(twin.parameters()).is_meta
    return Measured(Levels(levels), differences, size, fixed, fixed and isinstance(wide, Run), on_meta)


def declared_by(model: nn.Module) -> list[FeatureInfo]:
    """The levels as timm declares them."""
    rows: Any = model.feature_info
    return [FeatureInfo(row["num_chs"], row["reduction"], row["module"]) for row in getattr(rows, "info", rows)]


def _run_somehow(model: nn.Module, size: Size, count: int) -> tuple[nn.Module, Run]:
    """A copy that runs, without values if it does so, and its run."""
    twin = meta_twin(model)
    run = _attempt(twin, size, count)
    if isinstance(run, Run):
        return twin, run
    height, width = size
    if next(model.parameters()).is_meta:
        raise ContractError(
            f"{type(model).__name__} does not run on images of {height}x{width} without values ({run}), so that its "
            "maps cannot be measured on the meta device: build it on a real one"
        ) from run
    twin = structural_copy(model).eval()
    run = _attempt(twin, size, count)
    if isinstance(run, Run):
        return twin, run
    raise ContractError(f"{type(model).__name__} does not run on images of {height}x{width}: {run}") from run


def _attempt(model: nn.Module, size: Size, count: int) -> Run | Exception:
    try:
        return _run(model, size, count)
    except REFUSED as error:
        return error


def _run(model: nn.Module, size: Size, count: int) -> Run:
    makers: dict[Any, list[Maker]] = {}

    def note(name: str, output: Any) -> None:
        for position, value in enumerate(output if isinstance(output, tuple | list) else (output,)):
            if isinstance(value, Tensor) and value.grad_fn is not None:
                makers.setdefault(value.grad_fn, []).append((name, position))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        maps = tried(model, size, range(count))
    finally:
        for handle in handles:
            handle.remove()
    return Run(tuple(tuple(m.shape) for m in maps), tuple(tuple(_makers_of(m, makers)) for m in maps))


def _makers_of(map_: Tensor, makers: dict[Any, list[Maker]]) -> Iterator[Maker]:
    """The modules whose output holds the values of the map, the last to finish first."""
    step = map_.grad_fn
    while step is not None:
        yield from reversed(makers.get(step, ()))
        step = step.next_functions[0][0] if step.name().rstrip("0123456789").removesuffix("Backward") in MOVES else None


def _stride(size: Size, shape: Sequence[int], declared: int) -> int:
    """The declared reduction if the map of images of one size allows it, the ratio of the sides otherwise."""
    return declared if fits(size, shape, declared) else round(size[0] / shape[2])


def fits(size: Size, shape: Sequence[int], reduction: int) -> bool:
    """Whether a map (N, chs, h, w) of images of that size may have that reduction, rounded down or up.

    Convolutions without padding give one cell less.
    """
    return all(
        side // reduction - 1 <= cells <= -(-side // reduction) for side, cells in zip(size, shape[2:], strict=True)
    )


def _names(model: nn.Module, declared: Sequence[FeatureInfo], makers: Sequence[Sequence[Maker]]) -> list[str]:
    """Of each level, the module that makes its map; timm's own name where that is one, or where no module makes it.

    A module that makes the maps of several levels is named with their positions in what it returns: `blocks.0[1]`.
    """
    paths = {name for name, _ in model.named_modules()}
    chosen = [_maker(level.name, made_by, paths) for level, made_by in zip(declared, makers, strict=True)]
    names = [name for name, _ in chosen]
    return [f"{name}[{position}]" if names.count(name) > 1 else name for name, position in chosen]


def _maker(declared: str, made_by: Sequence[Maker], paths: Container[str]) -> Maker:
    inside = [maker for maker in made_by if maker[0] == declared or maker[0].startswith(f"{declared}.")]
    exact = [maker for maker in inside if maker[0] == declared]
    known = [(declared, 0)] if declared in paths and not made_by else []
    return next(iter([*exact, *known, *inside, *made_by]), (declared, 0))


def _differences(declared: Sequence[FeatureInfo], levels: Sequence[FeatureInfo]) -> Iterator[str]:
    for position, (theirs, ours) in enumerate(zip(declared, levels, strict=True)):
        for key in FeatureInfo.__slots__:
            if theirs[key] != ours[key]:
                yield f"level {position}: timm declares {key}={theirs[key]!r}, measured {ours[key]!r}"
