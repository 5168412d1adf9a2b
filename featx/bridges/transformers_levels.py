"""The levels of the models of transformers, found from the shapes of what they return.

The package's own forward runs, on a copy of the model's modules that shares its tensors and lacks what the maps do not
need, so that values are the package's.
"""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ..errors import ContractError
from ..features import FeatureInfo, Levels
from ..tracing.copies import structural_copy, twin_of
from ..tracing.dependencies import producers
from ..tracing.execution_order import channels_of
from ..tracing.map_layout import MapLayout, Size, Tap, map_layouts
from ..tracing.module_trace import trace_modules
from ..tracing.survey import shapes_if_accepted, shapes_of
from ..tracing.third_party_errors import REFUSED
from .bridged_pyramid import BridgedPyramid
from .measurement import Facts, images_for
from .transformers_reading import TransformersReading, put_in_place, record, size_divisor

# Arguments with which every model is called that has them.
ALWAYS = {"interpolate_pos_encoding": True, "return_dict": True}

# What the output calls the maps of models whose hidden states are tokens in another order than row by row.
ENTRIES = {"hiera": "reshaped_hidden_states"}


def as_pyramid(model: nn.Module) -> BridgedPyramid:
    """The maps of any model of transformers that has an image backbone or encoder in it; ContractError if none has."""
    copied: Any = structural_copy(model).train().eval()  # LeViT forgets here what it keeps of its last run
    path, tower = _tower(copied)
    record(tower)
    scrambled = put_in_place(tower)
    if tower.config.model_type == "vit_mae":
        tower.config.mask_ratio = 0.0
    named = signature(tower.forward).parameters
    reading = TransformersReading(path, {name: value for name, value in ALWAYS.items() if name in named})
    size, in_chans = _size(tower.config), getattr(tower.config, "num_channels", None) or channels_of(tower)
    find = _stages if hasattr(tower, "out_features") else _states
    reading, fixed = find(copied, reading, images_for(copied, in_chans, size).to("meta"))
    rows = zip(reading.names, reading.layouts, strict=True)
    levels = Levels(FeatureInfo(layout.chs, layout.reduction, name) for name, layout in rows)
    facts = Facts(
        levels,
        size,
        in_chans,
        fixed,
        divisor=size_divisor(tower.config),
        data_config=getattr(model, "data_config", None),
        corrections=_differences(tower, levels) + scrambled,
    )
    return BridgedPyramid(copied, reading, facts).train(model.training)


def _stages(model: nn.Module, reading: TransformersReading, images: Tensor) -> tuple[TransformersReading, bool]:
    """One level per stage of a backbone: all of them where it can, those it was built for otherwise."""
    tower, reading = reading.part(model), replace(reading, entry="feature_maps")
    stages, built = list(tower.stage_names), list(tower.out_features)
    for chosen in (stages, stages[1:], built):
        tower.config.out_features = chosen
        if len(shapes_if_accepted(twin_of(model), reading.tensors, images)) == len(chosen):
            break  # it has norms for all of these
    layouts, fixed = _layouts(model, reading, images)
    if getattr(tower.config, "reshape_hidden_states", False):
        layouts = _as_tokens(model, reading, images, layouts)
    names, places = list(tower.out_features), dict(enumerate(range(len(layouts))))
    return replace(reading, names=names, layouts=layouts, places=places), fixed


def _as_tokens(
    model: nn.Module, reading: TransformersReading, images: Tensor, before: list[MapLayout]
) -> list[MapLayout]:
    """The layouts if the backbone leaves tokens as they are, prefix tokens first; those of `before` if it cannot."""
    config = reading.part(model).config
    config.reshape_hidden_states = False
    try:
        layouts, _ = _layouts(model, reading, images)
    except ContractError:
        layouts = before
    same = [(one.chs, one.reduction) for one in layouts] == [(one.chs, one.reduction) for one in before]
    if same and layouts[0].prefix:
        return layouts
    config.reshape_hidden_states = True
    return before


def _states(model: nn.Module, reading: TransformersReading, images: Tensor) -> tuple[TransformersReading, bool]:
    """One level per block of an encoder, or, where reductions differ, one per reduction: its deepest hidden state."""
    config, arguments = reading.part(model).config, {**reading.arguments, "output_hidden_states": True}
    states = replace(reading, arguments=arguments)
    reading = replace(states, entry=ENTRIES.get(config.model_type, states.entry))
    layouts, fixed = _layouts(model, reading, images)
    run = trace_modules(twin_of(model), images, states.tensors)
    returned_by = producers(run)
    made_by = [returned_by.get(id(state), ()) for state in run.root.output]
    reductions, places = [layout.reduction for layout in layouts], list(range(len(layouts)))
    if len({*reductions}) > 1:
        places = [i for i in places if reductions[i] not in reductions[i + 1 :]]
    elif len(places) == getattr(config, "num_hidden_layers", -1) + 1:
        places = places[1:]  # the first is what the blocks get
    names = [next((path for path, at in made_by[i] if at == 0), f"hidden_states.{i}") for i in places]
    chosen = [layouts[i] for i in places]
    return replace(reading, names=names, layouts=chosen, places=dict(enumerate(places))), fixed


def _differences(tower: Any, levels: Levels) -> tuple[str, ...]:
    """A sentence for each stage of a backbone that has other channels than the package declares."""
    backbone = hasattr(tower, "out_features")
    declared = dict(zip(tower.stage_names, tower.num_features, strict=True)) if backbone else {}
    return tuple(
        f"{level.name} has {level.chs} channels, declared are {declared[level.name]}"
        for level in levels
        if declared.get(level.name, level.chs) != level.chs
    )


def _layouts(model: nn.Module, reading: TransformersReading, images: Tensor) -> tuple[list[MapLayout], bool]:
    """How each tensor becomes a map, from its shapes, and whether the model takes no images of twice the size."""
    (height, width), twin = images.shape[2:], twin_of(model)
    try:
        shapes = shapes_of(twin, reading.tensors, images)
    except REFUSED as error:
        size = (height, width)
        raise ContractError(f"{type(model).__name__} gives no maps of {size} images: {error}") from error
    larger = images.new_empty(*images.shape[:2], 2 * height, 2 * width)
    seen = {tuple(images.shape): shapes, tuple(larger.shape): shapes_if_accepted(twin, reading.tensors, larger)}
    seen = {size: shapes for size, shapes in seen.items() if shapes}
    return [_layout(reading.entry, [*seen], tensor) for tensor in zip(*seen.values(), strict=True)], len(seen) == 1


def _layout(entry: str, images: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]) -> MapLayout:
    """How a tensor becomes a map, from its shape for images of each shape; (N, C, h, w) where (N, h, w, C) fits, too.

    One cell is a map here, although elsewhere it may be a pooled vector.
    """
    taps = (Tap(entry), Tap(entry, layout="NCHW"), Tap(entry, layout="NLC", prefix=0))
    found = [layout for tap in taps for layout in map_layouts(tap, shapes, images)]
    if not found:
        told = " and ".join(f"{s} for images of {h}x{w}" for s, (*_, h, w) in zip(shapes, images, strict=True))
        raise ContractError(f"{entry} holds {told}: expected maps (N, C, h, w) or (N, h, w, C), or a grid of tokens")
    return found[0]


def _tower(model: nn.Module) -> tuple[str, Any]:
    """The outermost part of a model that takes nothing but images, and its path."""
    from transformers import PreTrainedModel

    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and part.main_input_name == "pixel_values":
            return path, part
    raise ContractError(f"{type(model).__name__} has no part that takes images")


def _size(config: Any) -> Size:
    """(height, width) of the images that the model is made for, 256 if it does not say."""
    size = getattr(config, "image_size", None) or 256
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
