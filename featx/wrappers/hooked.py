"""Maps of any model, collected by forward hooks while the model's own forward runs."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Pyramid
from ..errors import ArgumentError, ContractError
from ..features import FeatureInfo, Levels
from ..image_checks import check_size
from ..preprocessing import DataConfig
from ..spelling import closest
from ..tracing.copies import structural_copy, without_values
from ..tracing.map_layout import MapLayout, Size, Tap, described, map_layouts
from ..tracing.module_trace import ModuleCall, ModuleTrace
from ..tracing.pruning import insert_placeholders, removable
from ..tracing.size_rules import Rounding, SizeRule, roundings
from ..tracing.survey import Shapes, Survey, call_model, shapes_if_accepted, survey_model
from ..tracing.third_party_errors import third_party
from .transparent import Transparent


@dataclass(frozen=True, slots=True)
class _TappedModule:
    """A tap, the path of its module in `named_modules`, and the layout of its output."""

    tap: Tap
    path: str
    layout: MapLayout

    def output(self, trace: ModuleTrace) -> list[tuple[ModuleCall, Tensor]]:
        """The first call of the module and the tensor in its output; nothing if it is not called."""
        return [(call, self.tap.value(call.output)) for call in trace.calls.get(self.path, ())[:1]]

    def is_overwritten(self, survey: Survey) -> bool:
        """Whether the model changes the map in place after the module returned it."""
        return any(call.overwritten(value) for trace in survey.traces for call, value in self.output(trace))


class HookedPyramid(Transparent[nn.Module], Pyramid):
    """Runs the forward of a copy of `model`, and collects the outputs of some modules by hooks.

    The copy shares all tensors with `model`, which does not change. `cut` also removes the modules and parameters that
    no selected map depends on, if the forward runs without them; otherwise `excess` names the parameters.

    Args:
        model: the model.
        taps: the modules that return the maps.
        survey: traces of the model; by default `survey_model(model)`.
        size: the only (height, width) of images that the model accepts; None if it accepts others.
    """

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], survey: Survey | None = None, size: Size | None = None
    ) -> None:
        copied = structural_copy(model)
        super().__init__(copied)
        self._survey: Survey | None = survey or survey_model(model)
        self._argument, self.fixed_size = self._survey.argument, size
        height, width = self._survey.images.shape[2:]
        self._own_size: Size = (height, width)
        self.in_chans = self._survey.images.shape[1]
        if isinstance(config := getattr(model, "data_config", None), DataConfig):
            self.data_config = config
        self._tapped = _tapped_modules(copied, taps, self._survey)
        self.feature_info = _levels(self._tapped)
        self.size_rule = SizeRule(self._roundings)
        self._collector = _Collector()
        self._add_hooks(self._survey, range(len(self._tapped)))

    def _roundings(self) -> dict[int, Rounding]:
        twin = structural_copy(self, without_values, keep=[self._survey])
        return measured_roundings(twin, self._levels, self._own_size)

    def level_of(self, tap: Tap) -> int:
        """The position of the tap's map in `feature_info`."""
        return [tapped.tap for tapped in self._tapped].index(tap)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        check_size(x, self.fixed_size)
        height, width = x.shape[2:]
        collector, outer = self._collector, self._collector.maps
        collector.maps = maps = {}
        try:
            call_model(self._inner, x, self._argument)
        finally:
            collector.maps = outer  # those of an enclosing forward
        missing = [self.feature_info[level].name for level in levels if level not in maps]
        if missing:
            raise ContractError(f"{type(self._inner).__name__} did not call {missing} for images of {height}x{width}")
        return [
            self._tapped[level].layout.split(maps[level], (height, width), self.feature_info[level].name)
            for level in levels
        ]

    def cut(self, levels: Sequence[int]) -> "HookedPyramid":
        """A copy that shares all tensors, and computes and holds only what the maps of `levels` need."""
        survey = self._survey
        if survey is None:
            raise ContractError("this pyramid has been cut already: cut the original pyramid instead")
        tapped = [self._tapped[level] for level in levels]
        pruned = removable(self._inner, survey, lambda trace: [pair for tap in tapped for pair in tap.output(trace)])
        if pruned.survey is None:
            raise ContractError(
                f"the forward of {type(self._inner).__name__} varies from run to run: make it repeatable"
            )
        cut = structural_copy(self, keep=[survey])
        for module in cut._inner.modules():
            for key in [key for key, hook in module._forward_hooks.items() if isinstance(hook, _CollectMap)]:
                del module._forward_hooks[key]
        insert_placeholders(cut._inner, pruned.paths, survey)
        cut._add_hooks(pruned.survey, levels)
        cut.excess = tuple(name for name, _ in cut._inner.named_parameters() if name in pruned.unneeded)
        cut._survey = None
        return cut

    def _add_hooks(self, survey: Survey, levels: Sequence[int]) -> None:
        self._levels = tuple(levels)
        for level in levels:
            tapped = self._tapped[level]
            hook = _CollectMap(self._collector, level, tapped.tap, tapped.is_overwritten(survey))
            self._inner.get_submodule(tapped.tap.name).register_forward_hook(hook)


class _Collector(threading.local):
    """The maps that the hooks of one model have collected in this thread.

    Attributes:
        maps: maps by level during a forward, and None otherwise, so that no map stays referenced and recomputation by
            gradient checkpointing collects none. An instance attribute, because torch.compile cannot guard on a class
            attribute of a thread-local.
    """

    def __init__(self) -> None:
        self.maps: dict[int, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


@dataclass(slots=True)
class _CollectMap:
    """A forward hook that collects a map, or a copy of it if the model overwrites it later."""

    collector: _Collector
    level: int
    tap: Tap
    overwritten: bool

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.collector.maps is not None:
            value = self.tap.value(output)
            self.collector.maps[self.level] = value.clone() if self.overwritten else value


def measured_roundings(twin: Pyramid, levels: Sequence[int], own_size: Size) -> dict[int, Rounding]:
    """The rounding of each reduction among `levels`, measured on a copy of a pyramid on the meta device."""
    reductions = [twin.feature_info[level].reduction for level in levels]
    twin.eval()

    def shapes(size: Size) -> Shapes:
        images = torch.empty(2, twin.in_chans, *size, device="meta")
        return shapes_if_accepted(twin, lambda _, x: third_party(twin.forward_maps, x, levels), images)

    return roundings(shapes, reductions, own_size, twin.fixed_size is not None)


def _tapped_modules(model: nn.Module, taps: Sequence[Tap], survey: Survey) -> tuple[_TappedModule, ...]:
    """The tapped modules in the order in which they run. ContractError if one does not return a map."""
    paths = {module: path for path, module in model.named_modules()}
    order = {path: position for position, path in enumerate(survey.traces[0].calls)}
    tapped = list[_TappedModule]()
    for tap in taps:
        path = paths[_module(model, tap.name)]
        layout = layout_or_problem(tap, path, survey.layout_traces)
        if isinstance(layout, str):
            raise ContractError(layout)
        tapped.append(_TappedModule(tap, path, layout))
    return tuple(sorted(tapped, key=lambda module: order[module.path]))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules()]
        close = closest(path, names, 3) or names[1:6]
        raise ArgumentError(f"{type(model).__name__} has no module {path!r}; the closest are {close}") from None


def layout_or_problem(tap: Tap, path: str, traces: Sequence[ModuleTrace]) -> MapLayout | str:
    """The layout of the output of the module at `path`, or a sentence that says why it is not a map."""
    calls = [trace.calls.get(path, []) for trace in traces]
    module = f"module {tap.name!r}"
    if not calls[0]:
        return f"{module} is never called: tap one that featx.discover(model) lists"
    if any(len(calls_of_trace) != 1 for calls_of_trace in calls):
        return f"{module} is called {len(calls[0])} times: tap a module that is called once, such as its parent"
    values = [tap.value(call.output) for (call,) in calls]
    images = [tuple(trace.images.shape) for trace in traces]
    possible = map_layouts(tap, [tuple(value.shape) for value in values], images)
    if len(possible) == 1 and values[0].is_floating_point():
        return possible[0]
    outputs = " and ".join(
        f"{described(value)} for images of {h}x{w}" for value, (*_, h, w) in zip(values, images, strict=True)
    )
    if possible:
        layouts = [layout.layout for layout in possible]
        return f"{module} returned {outputs}: pass layout= to Tap, because it may be any of {layouts}"
    stated = {"layout": tap.layout, "prefix": tap.prefix}
    stated = ", ".join(f"{key}={value!r}" for key, value in stated.items() if value is not None)
    return f"{module} returned {outputs}, which is not a map (N, C, H, W), (N, H, W, C) or grid of tokens" + (
        f" with {stated}: leave that out" if stated else ": tap one that featx.discover(model) lists"
    )


def _levels(tapped: Sequence[_TappedModule]) -> Levels:
    """A level per map, named after the module, with the key if several maps come from one module."""
    paths = [module.tap.name for module in tapped]
    keys = [module.tap.key for module in tapped]
    names = [
        path if paths.count(path) == 1 or key is None else f"{path}[{key!r}]"
        for path, key in zip(paths, keys, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"{twice} tapped twice: name each map once")
    layouts = [module.layout for module in tapped]
    return Levels(FeatureInfo(form.chs, form.reduction, name) for form, name in zip(layouts, names, strict=True))
