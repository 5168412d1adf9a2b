"""Measurement of the levels of timm's models, some of which timm declares wrongly."""

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
from .measurement import Measurement, images_for

METHODS = ("forward_intermediates", "prune_intermediate_layers", "feature_info")


def intermediates(model: Any, x: Tensor, levels: Sequence[int], **options: bool) -> list[Any]:
    """The maps (N, chs, h, w) of `levels`, in ascending order, from `forward_intermediates`; by default not normed.

    Raises:
        ThirdPartyError: the model does not accept the images.
    """
    options = {"norm": False, "stop_early": True, "intermediates_only": True, **options}
    return third_party(model.forward_intermediates, x, indices=list(levels), output_fmt="NCHW", **options)


def measure(model: nn.Module) -> Measurement:
    """Run the model on the meta device at its own size and at a wider one, and compare with timm's declaration.

    A model that does not run on the meta device runs on images of zeros.

    Raises:
        ContractError: the model does not run, or lacks methods of timm's models.
    """
    _require_methods(model)
    declared, (in_chans, *size) = declared_by(model), input_size(model)
    read = partial(intermediates, levels=range(len(declared)))
    trace = _trace(model, read, in_chans, size)
    maps, added = trace.root.output, 2 * lcm(*(level.reduction for level in declared))
    wider = shapes_if_accepted(trace.model, read, images_for(trace.model, in_chans, (size[0], size[1] + added)))
    growth = [shape[3] - map_.shape[3] for map_, shape in zip(maps, wider, strict=True)] if wider else [0]
    fixed, on_meta = 0 in growth, trace.images.is_meta
    reductions = [_stride(size, map_.shape, level) for map_, level in zip(maps, declared, strict=True)]
    reductions = reductions if fixed else [added // cells for cells in growth]
    names = _names(model, declared, _producers(trace))
    levels = [FeatureInfo(maps[i].shape[1], reductions[i], name) for i, name in enumerate(names)]
    published: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return Measurement(
        levels=Levels(levels),
        size=(size[0], size[1]),
        in_chans=in_chans,
        fixed=fixed,
        resizes=fixed and bool(wider),
        divisor=1 if fixed or not on_meta else None,
        on_meta=on_meta,
        data_config=from_hub({**published, "input_size": (in_chans, *size)}, DataConfig()),
        corrections=tuple(_differences(declared, levels)),
    )


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that the model is built for."""
    from timm.models import get_model_input_config

    return get_model_input_config(model)["input_size"]


def declared_by(model: nn.Module) -> list[FeatureInfo]:
    """The levels as timm declares them."""
    rows: Any = model.feature_info
    return [FeatureInfo(row["num_chs"], row["reduction"], row["module"]) for row in getattr(rows, "info", rows)]


def fits(size: Sequence[int], shape: Sequence[int], reduction: int) -> bool:
    """Whether a map (N, chs, h, w) has the cells of size / reduction, rounded down or up.

    One cell less is allowed, for convolutions without padding.
    """
    return all(
        side // reduction - 1 <= cells <= -(-side // reduction) for side, cells in zip(size, shape[2:], strict=True)
    )


def _trace(model: nn.Module, read: Read, in_chans: int, size: Sequence[int]) -> ModuleTrace:
    """The trace of a copy of the model: on the meta device if possible."""
    name, images = type(model).__name__, f"images of {size[0]}x{size[1]}"
    twin = twin_of(model)
    try:
        return trace_modules(twin, images_for(twin, in_chans, size), read)
    except REFUSED as error:
        if next(model.parameters()).is_meta:
            raise ContractError(
                f"{name} does not run on {images} on the meta device ({error}), so that its maps cannot be measured "
                "there: build it on another device"
            ) from error
    twin = structural_copy(model)
    try:
        return trace_modules(twin, images_for(twin, in_chans, size), read)
    except REFUSED as error:
        raise ContractError(f"{name} does not run on {images}: {error}") from error


def _stride(size: Sequence[int], shape: Sequence[int], declared: FeatureInfo) -> int:
    """The declared reduction if the shape of the map fits it, or else the rounded ratio of the sides."""
    return declared.reduction if fits(size, shape, declared.reduction) else round(size[0] / shape[2])


def _producers(trace: ModuleTrace) -> list[list[Producer]]:
    """The modules that returned the values of each map, possibly in another order of axes."""
    returned_by, source_of, result = producers(trace), rearranged(trace), list[list[Producer]]()
    for map_ in trace.root.output:
        tensor: Tensor | None = map_
        result.append([])
        while tensor is not None:
            result[-1] += returned_by.get(id(tensor), ())
            tensor = source_of.get(id(tensor))
    return result


def _names(model: nn.Module, declared: Sequence[FeatureInfo], modules: Sequence[Sequence[Producer]]) -> list[str]:
    """The module that returns the map of each level: the declared one if possible, or else another producer.

    Levels of one module are distinguished by their positions in its output: `blocks.0[1]`.
    """
    paths = {name for name, _ in model.named_modules()}
    chosen = [_producer(level.name, candidates, paths) for level, candidates in zip(declared, modules, strict=True)]
    names = [name for name, _ in chosen]
    return [f"{name}[{position}]" if names.count(name) > 1 else name for name, position in chosen]


def _producer(declared: str, candidates: Sequence[Producer], paths: Container[str]) -> Producer:
    exact = [candidate for candidate in candidates if candidate[0] == declared]
    inside = [candidate for candidate in candidates if candidate[0].startswith(f"{declared}.")]
    unproduced = [(declared, 0)] if declared in paths and not candidates else []
    return next(iter([*exact, *unproduced, *inside, *candidates]), (declared, 0))


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
