"""Maps of any model, taken where its own forward computes them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
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
class Point:
    """A tap, the path that `named_modules` has for its module, and how what that returns becomes a map."""

    tap: Tap
    path: str
    form: MapLayout

    def taken(self, run: ModuleTrace) -> list[tuple[ModuleCall, Tensor]]:
        """The first call of the module, if it is called in the run, and the tensor in what that returned."""
        return [(call, self.tap.value(call.output)) for call in run.calls.get(self.path, ())[:1]]

    def overwritten(self, seen: Survey) -> bool:
        """Whether something changes the map in place after it was taken."""
        return any(call.overwritten(value) for run in seen.traces for call, value in self.taken(run))


class Tapped(Transparent[nn.Module], Pyramid):
    """Runs `model` as it is and takes the outputs of some of its modules as maps, by hooks on a copy.

    The copy shares all tensors with `model`, which stays untouched. In what `cut` returns, every module and parameter
    that no asked map depends on is left out, if the model's forward still runs without them; `excess` names the
    parameters where it does not.

    size: the only size (height, width) of images that the model takes, None if it takes others too.
    """

    def __init__(
        self, model: nn.Module, taps: Sequence[Tap], seen: Survey | None = None, size: Size | None = None
    ) -> None:
        copied = structural_copy(model)
        super().__init__(copied)
        self._seen: Survey | None = seen or survey_model(model)
        self._argument, self.fixed_size = self._seen.argument, size
        height, width = self._seen.images.shape[2:]
        self._own_size: Size = (height, width)
        self.in_chans = self._seen.images.shape[1]
        if isinstance(config := getattr(model, "data_config", None), DataConfig):
            self.data_config = config
        self._points = _points(copied, taps, self._seen)
        self.feature_info = _levels(self._points)
        self.size_rule = SizeRule(self._roundings)
        self._collector = _Collector()
        self._listen(self._seen, range(len(self._points)))

    def _roundings(self) -> dict[int, Rounding]:
        twin = structural_copy(self, without_values, keep=[self._seen])
        return measured_roundings(twin, self._levels, self._own_size)

    def level_of(self, tap: Tap) -> int:
        """The position of its map in `feature_info`."""
        return [point.tap for point in self._points].index(tap)

    def forward_maps(self, x: Tensor, levels: Sequence[int]) -> list[Tensor]:
        return [map_ for _, map_ in self.forward_tokens(x, levels)]

    def forward_tokens(self, x: Tensor, levels: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        check_size(x, self.fixed_size)
        height, width = x.shape[2:]
        collector, outer = self._collector, self._collector.taken
        collector.taken = taken = {}
        try:
            call_model(self._inner, x, self._argument)
        finally:
            collector.taken = outer  # of the forward that this one is nested in, if it is
        missing = [self.feature_info[level].name for level in levels if level not in taken]
        if missing:
            raise ContractError(f"{type(self._inner).__name__} did not call {missing} for images of {height}x{width}")
        return [
            self._points[level].form.split(taken[level], (height, width), self.feature_info[level].name)
            for level in levels
        ]

    def cut(self, levels: Sequence[int]) -> "Tapped":
        """A copy that shares all tensors, computes no maps but those of `levels`, and holds little else."""
        seen = self._seen
        if seen is None:
            raise ContractError("this has been cut already: cut what it was cut from")
        points = [self._points[level] for level in levels]
        found = removable(self._inner, seen, lambda run: [taken for point in points for taken in point.taken(run)])
        if found.survey is None:
            raise ContractError(
                f"{type(self._inner).__name__} does not do the same twice: its maps cannot be relied on"
            )
        cut = structural_copy(self, keep=[seen])
        cut._silence()
        insert_placeholders(cut._inner, found.paths, seen)
        cut._listen(found.survey, levels)
        cut.excess = tuple(name for name, _ in cut._inner.named_parameters() if name in found.unneeded)
        cut._seen = None
        return cut

    def _listen(self, seen: Survey, levels: Sequence[int]) -> None:
        self._levels = tuple(levels)
        for level in levels:
            point = self._points[level]
            hook = _Take(self._collector, level, point.tap, point.overwritten(seen))
            self._inner.get_submodule(point.tap.name).register_forward_hook(hook)

    def _silence(self) -> None:
        for module in self._inner.modules():
            hooks = [key for key, hook in module._forward_hooks.items() if isinstance(hook, _Take)]
            for key in hooks:
                del module._forward_hooks[key]


class _Collector(threading.local):
    """Where the hooks of one model put the maps of the forward that runs in this thread.

    Every thread has a `taken` of its own: maps by level while a forward runs, None outside one, so that nothing stays
    referenced and what gradient checkpointing computes again is not collected. It is set here and not on the class,
    because only then torch.compile can guard on it.
    """

    def __init__(self) -> None:
        self.taken: dict[int, Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


@dataclass(slots=True)
class _Take:
    """A forward hook that collects a map where it is computed, and a copy of it if it is overwritten later."""

    collector: _Collector
    level: int
    tap: Tap
    overwritten: bool

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.collector.taken is not None:
            value = self.tap.value(output)
            self.collector.taken[self.level] = value.clone() if self.overwritten else value


def measured_roundings(twin: Pyramid, levels: Sequence[int], own_size: Size) -> dict[int, Rounding]:
    """The rounding of each reduction among `levels`, from runs of a copy of a pyramid on the meta device."""
    reductions = [twin.feature_info[level].reduction for level in levels]
    return roundings(partial(_shapes, twin.eval(), levels), reductions, own_size, twin.fixed_size is not None)


def _shapes(twin: Pyramid, levels: Sequence[int], size: Size) -> Shapes:
    """Of its maps for images of that size; none if the model refuses it."""
    images = torch.empty(2, twin.in_chans, *size, device="meta")
    return shapes_if_accepted(twin, lambda _, x: third_party(twin.forward_maps, x, levels), images)


def _points(model: nn.Module, taps: Sequence[Tap], seen: Survey) -> tuple[Point, ...]:
    """The taps in the order the model computes them; ContractError if one is no map."""
    paths = {module: path for path, module in model.named_modules()}
    order = {path: place for place, path in enumerate(seen.traces[0].calls)}
    found = list[Point]()
    for tap in taps:
        path = paths[_module(model, tap.name)]
        form = form_of(tap, path, seen.layout_traces)
        if isinstance(form, str):
            raise ContractError(form)
        found.append(Point(tap, path, form))
    return tuple(sorted(found, key=lambda point: order[point.path]))


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules()]
        close = closest(path, names, 3) or names[1:6]
        raise ArgumentError(f"{type(model).__name__} has no module {path!r}; the closest are {close}") from None


def form_of(tap: Tap, path: str, runs: Sequence[ModuleTrace]) -> MapLayout | str:
    """How what the module at `path` returned becomes a map, or why it does not."""
    calls = [run.calls.get(path, []) for run in runs]
    if not calls[0]:
        return f"module {tap.name!r} is never called: tap one that featx.discover(model) lists"
    if any(len(made) != 1 for made in calls):
        return (
            f"module {tap.name!r} is called {len(calls[0])} times: tap a module that is called once, such as its owner"
        )
    values = [tap.value(made[0].output) for made in calls]
    images = [tuple(run.images.shape) for run in runs]
    possible = map_layouts(tap, [tuple(value.shape) for value in values], images)
    if len(possible) == 1 and values[0].is_floating_point():
        return possible[0]
    told = " and ".join(
        f"{described(value)} for images of {h}x{w}" for value, (*_, h, w) in zip(values, images, strict=True)
    )
    if possible:
        return f"module {tap.name!r} returned {told}: state layout=, it may be any of {[f.layout for f in possible]}"
    stated = {"layout": tap.layout, "prefix": tap.prefix}
    stated = ", ".join(f"{key}={value!r}" for key, value in stated.items() if value is not None)
    return f"module {tap.name!r} returned {told}, which is no map (N, C, H, W), (N, H, W, C) or grid of tokens" + (
        f" with {stated}: leave that out" if stated else ": tap one that featx.discover(model) lists"
    )


def _levels(points: Sequence[Point]) -> Levels:
    """A row per map, named after the module, and the key where several are from one."""
    paths = [point.tap.name for point in points]
    keys = [point.tap.key for point in points]
    names = [
        path if paths.count(path) == 1 or key is None else f"{path}[{key!r}]"
        for path, key in zip(paths, keys, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArgumentError(f"{twice} tapped twice: name each map once")
    return Levels(
        FeatureInfo(point.form.chs, point.form.reduction, name) for point, name in zip(points, names, strict=True)
    )
