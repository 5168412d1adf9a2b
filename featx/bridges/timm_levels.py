"""The levels of a model of timm as they are, which is not always as timm declares them."""

from collections.abc import Container, Iterator, Sequence
from functools import partial
from math import lcm
from typing import Any

from torch import Tensor, nn

from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..preprocessing import DataConfig, from_hub
from ..tracing.copies import structural_copy, twin_of
from ..tracing.dependencies import Producer, producers, rearranged
from ..tracing.module_trace import ModuleTrace, trace_modules
from ..tracing.survey import Read, shapes_if_accepted
from ..tracing.third_party_errors import REFUSED, third_party
from .measurement import Facts, images_for

METHODS = ("forward_intermediates", "prune_intermediate_layers", "feature_info")


def intermediates(model: Any, x: Tensor, levels: Sequence[int], **options: bool) -> list[Any]:
    """What timm's own method returns for `levels`, which ascend: maps (N, chs, h, w), not normalised.

    Raises ThirdPartyError if the model does not take the images.
    """
    options = {"norm": False, "stop_early": True, "intermediates_only": True, **options}
    return third_party(model.forward_intermediates, x, indices=list(levels), output_fmt="NCHW", **options)


def measure(model: nn.Module) -> Facts:
    """Run the model without computing at its own size and at a wider one, and compare with what timm declares.

    A model that cannot run without values is run on black images. Raises ContractError if it does not run either, and
    for one that lacks methods of timm's models.
    """
    _require_methods(model)
    declared, (in_chans, *size) = declared_by(model), input_size(model)
    read = partial(intermediates, levels=range(len(declared)))
    run = _first_run(model, read, in_chans, size)
    maps, stretch = run.root.output, 2 * lcm(*(level.reduction for level in declared))
    wide = shapes_if_accepted(run.model, read, images_for(run.model, in_chans, (size[0], size[1] + stretch)))
    grown = [shape[3] - map_.shape[3] for map_, shape in zip(maps, wide, strict=True)] if wide else [0]
    fixed, on_meta = 0 in grown, run.images.is_meta
    reductions = [_stride(size, map_.shape, level) for map_, level in zip(maps, declared, strict=True)]
    reductions = reductions if fixed else [stretch // more for more in grown]
    names = _names(model, declared, _makers(run))
    levels = [FeatureInfo(maps[i].shape[1], reductions[i], name) for i, name in enumerate(names)]
    published: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return Facts(
        levels=Levels(levels),
        size=(size[0], size[1]),
        in_chans=in_chans,
        fixed=fixed,
        resizes=fixed and bool(wide),
        divisor=1 if fixed or not on_meta else None,
        on_meta=on_meta,
        data_config=from_hub({**published, "input_size": (in_chans, *size)}, DataConfig()),
        corrections=tuple(_differences(declared, levels)),
    )


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model is made for."""
    from timm.models import get_model_input_config

    return get_model_input_config(model)["input_size"]


def declared_by(model: nn.Module) -> list[FeatureInfo]:
    """The levels as timm declares them."""
    rows: Any = model.feature_info
    return [FeatureInfo(row["num_chs"], row["reduction"], row["module"]) for row in getattr(rows, "info", rows)]


def fits(size: Sequence[int], shape: Sequence[int], reduction: int) -> bool:
    """Whether a map (N, chs, h, w) of images of that size may have that reduction, rounded down or up.

    Convolutions without padding give one cell less.
    """
    return all(
        side // reduction - 1 <= cells <= -(-side // reduction) for side, cells in zip(size, shape[2:], strict=True)
    )


def _first_run(model: nn.Module, read: Read, in_chans: int, size: Sequence[int]) -> ModuleTrace:
    """How a copy makes the maps, without values if it runs so."""
    name, images = type(model).__name__, f"images of {size[0]}x{size[1]}"
    twin = twin_of(model)
    try:
        return trace_modules(twin, images_for(twin, in_chans, size), read)
    except REFUSED as error:
        if next(model.parameters()).is_meta:
            raise ContractError(
                f"{name} does not run on {images} without values ({error}), so that its maps cannot be measured on "
                "the meta device: build it on a real one"
            ) from error
    twin = structural_copy(model)
    try:
        return trace_modules(twin, images_for(twin, in_chans, size), read)
    except REFUSED as error:
        raise ContractError(f"{name} does not run on {images}: {error}") from error


def _stride(size: Sequence[int], shape: Sequence[int], declared: FeatureInfo) -> int:
    """The declared reduction if the map of images of one size allows it, the ratio of the sides otherwise."""
    return declared.reduction if fits(size, shape, declared.reduction) else round(size[0] / shape[2])


def _makers(run: ModuleTrace) -> list[list[Producer]]:
    """Of each map, the modules that returned its values, in whatever order these lay there."""
    returned_by, moved, found = producers(run), rearranged(run), list[list[Producer]]()
    for map_ in run.root.output:
        held: Tensor | None = map_
        found.append([])
        while held is not None:
            found[-1] += returned_by.get(id(held), ())
            held = moved.get(id(held))
    return found


def _names(model: nn.Module, declared: Sequence[FeatureInfo], makers: Sequence[Sequence[Producer]]) -> list[str]:
    """Of each level, the module that makes its map; timm's own name where that is one, or where no module makes it.

    A module that makes the maps of several levels is named with their positions in what it returns: `blocks.0[1]`.
    """
    paths = {name for name, _ in model.named_modules()}
    chosen = [_maker(level.name, made_by, paths) for level, made_by in zip(declared, makers, strict=True)]
    names = [name for name, _ in chosen]
    return [f"{name}[{position}]" if names.count(name) > 1 else name for name, position in chosen]


def _maker(declared: str, made_by: Sequence[Producer], paths: Container[str]) -> Producer:
    inside = [maker for maker in made_by if maker[0] == declared or maker[0].startswith(f"{declared}.")]
    exact = [maker for maker in inside if maker[0] == declared]
    known = [(declared, 0)] if declared in paths and not made_by else []
    return next(iter([*exact, *known, *inside, *made_by]), (declared, 0))


def _differences(declared: Sequence[FeatureInfo], levels: Sequence[FeatureInfo]) -> Iterator[str]:
    for position, (theirs, ours) in enumerate(zip(declared, levels, strict=True)):
        for key in FeatureInfo.__slots__:
            if theirs[key] != ours[key]:
                yield f"level {position}: timm declares {key}={theirs[key]!r}, measured {ours[key]!r}"


def _require_methods(model: nn.Module) -> None:
    missing = [name for name in METHODS if not hasattr(model, name)]
    if missing:
        raise ContractError(
            f"{type(model).__name__} of timm has no {', '.join(missing)}: wrap the model that timm.create_model "
            "returns without features_only=True, of timm 1.0.31 or later"
        )
