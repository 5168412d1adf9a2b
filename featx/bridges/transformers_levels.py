"""Measurement of the levels of transformers' models, from the shapes of their outputs.

The package's own forward computes the maps, on a copy of the modules that shares the model's tensors.
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
from .measurement import Measurement, images_for
from .transformers_map_reader import TransformersMapReader, correct_cell_order, install_recording_hooks, size_divisor

# Arguments for every forward that has these parameters.
ARGUMENTS = {"interpolate_pos_encoding": True, "return_dict": True}

# Encoders of a backbone and a neck. Their maps are the backbone's, as for every other encoder.
WITH_NECK = ("sam2_vision_model", "sam3_vision_model")

# Entries of the output with the maps, for models whose hidden states are tokens in another order than row by row.
ENTRIES = {"hiera": "reshaped_hidden_states"}


def as_pyramid(model: nn.Module) -> BridgedPyramid:
    """A Pyramid of the image backbone or encoder in a model. ContractError if it has none."""
    copied: Any = structural_copy(model).train().eval()  # train() clears LeViT's cache
    path, tower = _tower(copied)
    install_recording_hooks(tower)
    corrections = correct_cell_order(tower)
    if tower.config.model_type == "vit_mae":
        tower.config.mask_ratio = 0.0
    parameters = signature(tower.forward).parameters
    reader = TransformersMapReader(path, {name: value for name, value in ARGUMENTS.items() if name in parameters})
    size, in_chans = _size(tower.config), getattr(tower.config, "num_channels", None) or channels_of(tower)
    find_levels = _stages if hasattr(tower, "out_features") else _hidden_states
    reader, fixed = find_levels(copied, reader, images_for(copied, in_chans, size).to("meta"))
    rows = zip(reader.names, reader.layouts, strict=True)
    levels = Levels(FeatureInfo(layout.chs, layout.reduction, name) for name, layout in rows)
    divisor = size_divisor(tower.config)
    measured = Measurement(
        levels,
        size,
        in_chans,
        fixed,
        divisor=divisor if fixed or divisor > 1 else None,
        data_config=getattr(model, "data_config", None),
        corrections=_differences(tower, levels) + corrections,
    )
    return BridgedPyramid(copied, reader, measured).train(model.training)


def _stages(model: nn.Module, reader: TransformersMapReader, images: Tensor) -> tuple[TransformersMapReader, bool]:
    """A reader with a level per stage of a backbone: all stages if it supports them, or else its `out_features`."""
    tower, reader = reader.tower_of(model), replace(reader, entry="feature_maps")
    stages, original = list(tower.stage_names), list(tower.out_features)
    for selected in (stages, stages[1:], original):
        tower.config.out_features = selected
        if len(shapes_if_accepted(twin_of(model), reader.tensors, images)) == len(selected):
            break  # the backbone has a norm for each of these stages
    layouts, fixed = _layouts(model, reader, images)
    if getattr(tower.config, "reshape_hidden_states", False):
        layouts = _token_layouts(model, reader, images, layouts)
    names, indices = list(tower.out_features), dict(enumerate(range(len(layouts))))
    return replace(reader, names=names, layouts=layouts, indices=indices), fixed


def _token_layouts(
    model: nn.Module, reader: TransformersMapReader, images: Tensor, map_layouts: list[MapLayout]
) -> list[MapLayout]:
    """The layouts of tokens with prefix tokens, which the backbone is set to return; `map_layouts` if it cannot."""
    config = reader.tower_of(model).config
    config.reshape_hidden_states = False
    try:
        layouts, _ = _layouts(model, reader, images)
    except ContractError:
        layouts = map_layouts
    same = [(each.chs, each.reduction) for each in layouts] == [(each.chs, each.reduction) for each in map_layouts]
    if same and layouts[0].prefix:
        return layouts
    config.reshape_hidden_states = True
    return map_layouts


def _hidden_states(
    model: nn.Module, reader: TransformersMapReader, images: Tensor
) -> tuple[TransformersMapReader, bool]:
    """A reader with a level per block of an encoder, or with the deepest hidden state per reduction if they differ."""
    config, arguments = reader.tower_of(model).config, {**reader.arguments, "output_hidden_states": True}
    states = replace(reader, arguments=arguments)
    reader = replace(states, entry=ENTRIES.get(config.model_type, states.entry))
    layouts, fixed = _layouts(model, reader, images)
    trace = trace_modules(twin_of(model), images, states.tensors)
    returned_by = producers(trace)
    modules = [returned_by.get(id(state), ()) for state in trace.root.output]
    reductions, indices = [layout.reduction for layout in layouts], list(range(len(layouts)))
    if len({*reductions}) > 1:
        indices = [i for i in indices if reductions[i] not in reductions[i + 1 :]]
    elif len(indices) == getattr(config, "num_hidden_layers", -1) + 1:
        indices = indices[1:]  # the first state is the input of the blocks
    names = [next((path for path, position in modules[i] if position == 0), f"hidden_states.{i}") for i in indices]
    selected = [layouts[i] for i in indices]
    return replace(reader, names=names, layouts=selected, indices=dict(enumerate(indices))), fixed


def _differences(tower: Any, levels: Levels) -> tuple[str, ...]:
    """A sentence for each stage of a backbone whose channels the package declares wrongly."""
    backbone = hasattr(tower, "out_features")
    declared = dict(zip(tower.stage_names, tower.num_features, strict=True)) if backbone else {}
    return tuple(
        f"{level.name} has {level.chs} channels, declared are {declared[level.name]}"
        for level in levels
        if declared.get(level.name, level.chs) != level.chs
    )


def _layouts(model: nn.Module, reader: TransformersMapReader, images: Tensor) -> tuple[list[MapLayout], bool]:
    """The layout of each tensor, and whether the model refuses images of twice the size."""
    (height, width), twin = images.shape[2:], twin_of(model)
    try:
        shapes = shapes_of(twin, reader.tensors, images)
    except REFUSED as error:
        size = (height, width)
        raise ContractError(f"{type(model).__name__} returns no maps of {size} images: {error}") from error
    larger = images.new_empty(*images.shape[:2], 2 * height, 2 * width)
    runs = {tuple(images.shape): shapes, tuple(larger.shape): shapes_if_accepted(twin, reader.tensors, larger)}
    runs = {size: shapes for size, shapes in runs.items() if shapes}
    return [_layout(reader.entry, [*runs], tensor) for tensor in zip(*runs.values(), strict=True)], len(runs) == 1


def _layout(entry: str, images: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, ...]]) -> MapLayout:
    """The layout of a tensor from its shape for images of each shape; (N, C, h, w) rather than (N, h, w, C).

    A single cell counts as a map, not as a pooled vector.
    """
    taps = (Tap(entry), Tap(entry, layout="NCHW"), Tap(entry, layout="NLC", prefix=0))
    layouts = [layout for tap in taps for layout in map_layouts(tap, shapes, images)]
    if not layouts:
        tensors = " and ".join(f"{s} for images of {h}x{w}" for s, (*_, h, w) in zip(shapes, images, strict=True))
        raise ContractError(f"{entry} holds {tensors}: expected maps (N, C, h, w) or (N, h, w, C), or a grid of tokens")
    return layouts[0]


def _tower(model: nn.Module) -> tuple[str, Any]:
    """Path and module of the outermost submodel whose main input is images and that has no neck."""
    from transformers import PreTrainedModel

    for path, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or module.main_input_name != "pixel_values":
            continue
        tower: Any = module
        if tower.config.model_type not in WITH_NECK:
            return path, tower
    raise ContractError(f"{type(model).__name__} has no part that takes images")


def _size(config: Any) -> Size:
    """(height, width) in pixels of the images that the model is built for; 256 by default."""
    size = getattr(config, "image_size", None) or 256
    return (size, size) if isinstance(size, int) else (size[0], size[-1])
