"""Maps of the models of transformers: the feature maps of its backbones, the hidden states of its other models.

The package's own forward runs, on a copy of the model's modules that shares its tensors and lacks what the maps do not
need, so that values are the package's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from inspect import getclosurevars, signature
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import ContractError, InputError
from ..features import FeatureInfo, Levels
from ..tracing.copies import structural_copy
from ..tracing.execution_order import channels_of
from ..tracing.map_layout import MapLayout, Size, Tap, map_layouts
from ..tracing.pruning import prune
from ..tracing.size_rules import Rounding, SizeRule, acceptable, divisor_of, roundings
from ..tracing.survey import read_on_meta
from ..tracing.third_party_errors import REFUSED, ThirdPartyError, drop_hooks, third_party
from ..wrappers.transparent import Transparent
from .transformers_places import ENTRIES, problem_with, put_in_place, size_divisor

Inputs = Callable[[Any, Tensor], dict[str, Any]]


def in_order(model: Any, x: Tensor) -> dict[str, Tensor]:
    """The noise by which a masked autoencoder shuffles patches, so that it leaves them in place."""
    patches = (x.shape[2] // model.config.patch_size) * (x.shape[3] // model.config.patch_size)
    return {"noise": torch.arange(patches, device=x.device, dtype=x.dtype).expand(x.shape[0], -1)}


# Model types that need more than images to give their maps, or other settings than their default.
INPUTS: dict[str, Inputs] = {"vit_mae": in_order}
SETTINGS: dict[str, dict[str, Any]] = {"vit_mae": {"mask_ratio": 0.0}}

# Arguments with which every model is called that has them.
ALWAYS = {"interpolate_pos_encoding": True, "output_hidden_states": True, "return_dict": True}


@dataclass(frozen=True)
class Reading:
    """How maps are had of a model.

    tower: path of the part that takes images. entry: of its output, such as feature_maps or hidden_states.
    taken: positions in that entry, one per level.
    """

    tower: str
    entry: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    taken: tuple[int, ...] | None = None

    def __call__(self, model: nn.Module, x: Tensor) -> list[Tensor]:
        tower: Any = model.get_submodule(self.tower)
        inputs = INPUTS.get(tower.config.model_type)
        output = third_party(tower, pixel_values=x, **self.arguments, **(inputs(tower, x) if inputs else {}))
        tensors = output.get(self.entry) or ()
        taken = range(len(tensors)) if self.taken is None else self.taken
        if not taken or max(taken) >= len(tensors):
            raise ContractError(f"{type(tower).__name__} returned {len(tensors)} tensors as {self.entry}")
        return [tensors[i] for i in taken]


class TransformersPyramid(Transparent[nn.Module], Pyramid):
    """A model of transformers as a source of maps.

    Its `corrections` tell where the package declares other channels than its maps have.
    """

    def __init__(self, model: Any, reading: Reading, levels: Levels, forms: Sequence[MapLayout]) -> None:
        super().__init__(model)
        self.feature_info = levels
        self._reading, self._forms = reading, tuple(forms)
        self._offered = tuple(range(len(levels)))
        self._own_size = _size(model)
        self.size_rule = SizeRule(self._roundings)
        vars(self).update(size_divisor=size_divisor(self._config))  # of the class in a family
        self.in_chans: int = model.in_chans
        if model.data_config is not None:
            self.data_config = model.data_config

    @property
    def _config(self) -> Any:
        tower: Any = self._inner.get_submodule(self._reading.tower)
        return tower.config

    def _roundings(self) -> dict[int, Rounding]:
        reductions = [self.feature_info[level].reduction for level in self._offered]
        return roundings(self._map_shapes, reductions, self._own_size, self.fixed_size is not None)

    def _map_shapes(self, size: Size) -> list[tuple[int, ...]]:
        """Of the offered maps for images of that size; none if the model refuses it, whatever hooks users put on it."""
        x, model = _images(self._inner, size), structural_copy(self._inner)
        drop_hooks(model, keep=(Recorded,))
        try:
            tensors = read_on_meta(model, self._reading, x)
            return [
                tuple(self._forms[i].map(tensor, size, self.feature_info[i].name).shape)
                for i, tensor in zip(self._offered, tensors, strict=True)
            ]
        except REFUSED:
            return []

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        size = (x.shape[2], x.shape[3])
        return [self._forms[i].split(tensor, size, self.feature_info[i].name) for i, tensor in self._tensors(x, levels)]

    def _tensors(self, x: Tensor, levels: Sequence[int]) -> list[tuple[int, Tensor]]:
        if problem := problem_with(self._config, x.shape[2], x.shape[3]):
            name = type(self._inner).__name__
            raise InputError(f"{name} of transformers takes no images of {x.shape[2]}x{x.shape[3]} pixels: {problem}")
        try:
            offered = self._reading(self._inner, x)
        except ThirdPartyError as error:
            if tuple(x.shape[2:]) == self._own_size or self._map_shapes((x.shape[2], x.shape[3])):
                raise error.original from error.original.__cause__
            height, width = x.shape[2:]
            to = self.fixed_size or self._acceptable((height, width))
            raise InputError(
                f"{type(self._inner).__name__} as it was built takes no images of {height}x{width} pixels ({error}): "
                f"resize them to {to[0]}x{to[1]}"
            ) from error.original
        return [(level, offered[self._offered.index(level)]) for level in levels]

    def _acceptable(self, size: Size) -> Size:
        def takes(size: Size) -> bool:
            return bool(self._map_shapes(size))

        return acceptable(size, divisor_of(takes, self._own_size), takes, self._own_size)

    def unused(self, levels: Sequence[int]) -> Sequence[str]:
        """No module: `cut` has left out what `levels` do not need."""
        del levels
        return ()

    def cut(self, levels: Sequence[int]) -> TransformersPyramid:
        """This pyramid for `levels` alone."""
        copied, reading = structural_copy(self._inner), self._reading
        positions = [self._offered.index(level) for level in levels]
        if reading.entry == "feature_maps":
            tower: Any = copied.get_submodule(reading.tower)
            choose(tower, [tower.out_features[i] for i in positions])
        else:
            reading = replace(reading, taken=tuple(reading.taken[i] for i in positions) if reading.taken else None)
        left = prune(copied, reading, _images(self._inner, _size(self._inner)), (Recorded,))
        cut = TransformersPyramid(copied, reading, self.feature_info, self._forms)
        cut._offered, cut.excess, cut.corrections = tuple(levels), left, self.corrections
        cut.fixed_size = self.fixed_size
        return cut


def as_pyramid(model: nn.Module) -> TransformersPyramid:
    """The maps of any model of transformers that has an image backbone or encoder in it; ContractError if none has."""
    copied: Any = structural_copy(model).train().eval()  # LeViT forgets here what it keeps of its last run
    tower = _tower(copied)
    part: Any = copied.get_submodule(tower)
    record(part)
    corrections = put_in_place(part)
    backbone = hasattr(part, "out_features")
    named = signature(part.forward).parameters
    arguments = {name: value for name, value in ALWAYS.items() if name in named or name == "output_hidden_states"}
    for name, value in SETTINGS.get(part.config.model_type, {}).items():
        setattr(part.config, name, value)
    copied.in_chans, copied.data_config = _in_chans(part), getattr(model, "data_config", None)
    build = _of_backbone if backbone else _of_hidden_states
    entry = "feature_maps" if backbone else ENTRIES.get(part.config.model_type, "hidden_states")
    pyramid = build(copied, Reading(tower, entry, arguments))
    pyramid.corrections += corrections
    height, width = pyramid._own_size
    if not pyramid._map_shapes((2 * height, 2 * width)):
        pyramid.fixed_size = height, width
    return pyramid.train(model.training)


def _of_backbone(model: Any, reading: Reading) -> TransformersPyramid:
    """One level per stage: all of them where the backbone can, those it was built for otherwise."""
    reading = replace(reading, arguments={k: v for k, v in reading.arguments.items() if k != "output_hidden_states"})
    tower = model.get_submodule(reading.tower)
    built = list(tower.out_features)
    for stages in (list(tower.stage_names), list(tower.stage_names)[1:], built):
        choose(tower, stages)
        if _offers(model, reading):
            break
    shapes = _measured(model, reading)
    if getattr(tower.config, "reshape_hidden_states", False):
        shapes = _as_tokens(model, reading, tower.config, shapes) or shapes
    levels = Levels(FeatureInfo(s.chs, s.reduction, name) for s, name in zip(shapes, tower.out_features, strict=True))
    pyramid = TransformersPyramid(model, reading, levels, shapes)
    declared = dict(zip(tower.stage_names, tower.num_features, strict=True))
    pyramid.corrections = tuple(
        f"{level.name} has {level.chs} channels, declared are {declared[level.name]}"
        for level in levels
        if declared[level.name] != level.chs
    )
    return pyramid


def _as_tokens(model: nn.Module, reading: Reading, config: Any, before: Sequence[MapLayout]) -> list[MapLayout] | None:
    """The shapes if the backbone leaves its tokens as they are, prefix tokens before the patches; None if it cannot."""
    config.reshape_hidden_states = False
    try:
        shapes = _measured(model, reading)
    except ContractError:
        shapes = []
    if [(s.chs, s.reduction) for s in shapes] != [(s.chs, s.reduction) for s in before] or not shapes[0].prefix:
        config.reshape_hidden_states = True
        return None
    return shapes


def _of_hidden_states(model: Any, reading: Reading) -> TransformersPyramid:
    """One level per block, or, where reductions differ, one per reduction: its deepest hidden state."""
    shapes = _measured(model, reading)
    tower = model.get_submodule(reading.tower)
    taken = list(range(len(shapes)))
    if len({shape.reduction for shape in shapes}) > 1:
        taken = [i for i in taken if shapes[i].reduction not in [shape.reduction for shape in shapes[i + 1 :]]]
    elif len(taken) == getattr(tower.config, "num_hidden_layers", -1) + 1:
        taken = taken[1:]  # the first is what the blocks get
    names = _names(model, replace(reading, entry="hidden_states"))
    chosen = [shapes[i] for i in taken]
    levels = Levels(FeatureInfo(shapes[i].chs, shapes[i].reduction, names[i]) for i in taken)
    return TransformersPyramid(model, replace(reading, taken=tuple(taken)), levels, chosen)


def _names(model: nn.Module, reading: Reading) -> list[str]:
    """Path of the outermost module that returns each hidden state, "hidden_states.<i>" if none does."""
    makers: dict[int, str] = {}
    kept: list[Any] = []

    def note(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            kept.append(first)  # alive, so that no other tensor gets its id
            makers[id(first)] = path

    traced = structural_copy(model)
    for path, module in traced.named_modules():
        if path and path != reading.tower:
            module.register_forward_hook(lambda _, __, output, path=path: note(path, output))
    tensors = read_on_meta(traced, reading, _images(model, _size(model)))
    return [makers.get(id(tensor), f"hidden_states.{i}") for i, tensor in enumerate(tensors)]


def choose(tower: Any, stages: Sequence[str]) -> None:
    """Let the backbone return the maps of these stages, in place."""
    tower.config._out_features = list(stages)
    tower.config._out_indices = [list(tower.stage_names).index(stage) for stage in stages]


def _measured(model: Any, reading: Reading) -> list[MapLayout]:
    """The shapes of the tensors at the size the model is made for, and at twice that if it takes it."""
    height, width = _size(model)
    seen: list[tuple[Size, list[torch.Size]]] = []
    for factor in (1, 2):
        size = (height * factor, width * factor)
        try:
            tensors = read_on_meta(model, reading, _images(model, size))
        except REFUSED as error:
            if not seen:
                raise ContractError(f"{type(model).__name__} gives no maps of {size} images: {error}") from error
            break
        if all(t.shape[0] == 2 for t in tensors):
            seen.append((size, [tensor.shape for tensor in tensors]))
    if not seen:
        raise ContractError(f"{type(model).__name__} returns tensors whose first axis is not that of the images")
    return [_form([(size, shapes[i]) for size, shapes in seen], reading) for i in range(len(seen[0][1]))]


def _form(seen: Sequence[tuple[Size, Sequence[int]]], reading: Reading) -> MapLayout:
    """How a tensor becomes a map, from its shape at each size; (N, C, h, w) where (N, h, w, C) fits, too.

    One cell is a map here, although elsewhere it may be a pooled vector.
    """
    shapes, images = [tuple(shape) for _, shape in seen], [(2, 0, *size) for size, _ in seen]
    entry = reading.entry
    taps = (Tap(entry), Tap(entry, layout="NCHW"), Tap(entry, layout="NLC", prefix=0))
    found = [layout for tap in taps for layout in map_layouts(tap, shapes, images)]
    if not found:
        seen_shapes = " and ".join(f"{tuple(shape)} for images of {height}x{width}" for (height, width), shape in seen)
        raise ContractError(
            f"{reading.entry} holds {seen_shapes}: expected maps (N, C, h, w) or (N, h, w, C), or a grid of tokens"
        )
    return found[0]


def _offers(model: nn.Module, reading: Reading) -> bool:
    try:
        maps = read_on_meta(model, reading, _images(model, _size(model)))
    except REFUSED:  # it has no norms for some of the stages
        return False
    tower: Any = model.get_submodule(reading.tower)
    return len(maps) == len(tower.out_features)


def _tower(model: nn.Module) -> str:
    """Path of the outermost part of a model that takes nothing but images."""
    from transformers import PreTrainedModel

    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and part.main_input_name == "pixel_values":
            return path
    raise ContractError(f"{type(model).__name__} has no part that takes images")


def _in_chans(tower: Any) -> int:
    return getattr(tower.config, "num_channels", None) or channels_of(tower)


def _size(model: Any) -> Size:
    size = getattr(model.get_submodule(_tower(model)).config, "image_size", None) or 256
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def _images(model: Any, size: Size) -> Tensor:
    return torch.empty(2, _in_chans(model.get_submodule(_tower(model))), *size, device="meta")


class Recorded:
    """A hook with which transformers records hidden states, which can be pickled."""

    def __init__(self, key: str, index: int, capture_initial_hidden_state: bool) -> None:
        from transformers.utils.output_capturing import install_output_capuring_hook

        self._facts = (key, index, capture_initial_hidden_state)
        bearer = nn.Identity()
        install_output_capuring_hook(bearer, *self._facts)
        (self._hook,) = bearer._forward_hooks.values()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return self._hook(module, inputs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorded, self._facts

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorded:
        return copy.copy(self)


def record(tower: Any) -> None:
    """Install the package's hooks that record hidden states now, not at the first run, and so that they can be pickled.

    In place. Versions without such hooks have none to install.
    """
    if find_spec("transformers.utils.output_capturing") is None:
        return
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    maybe_install_capturing_hooks(tower)
    for module in tower.modules():
        for key, hook in module._forward_hooks.items():
            if getattr(hook, "__name__", "") == "output_capturing_hook":
                facts = getclosurevars(hook).nonlocals
                recorded = Recorded(facts["key"], facts["index"], facts["capture_initial_hidden_state"])
                module._forward_hooks[key] = recorded
