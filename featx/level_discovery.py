"""discover: the levels that a model has, whoever wrote it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .arguments import require_module, require_size, wrong
from .errors import ArgumentError, ContractError
from .features import FeatureInfo, Levels
from .tracing.dependencies import bits, dependencies
from .tracing.execution_order import meta_images
from .tracing.map_layout import MapLayout, Size, Tap
from .tracing.survey import Survey, survey
from .wrappers.tapped import form_of

# The share of a model's modules and parameters that is a part of a block, and not a stage.
LITTLE = 0.05


class Proposal(Levels):
    """Levels that a model could have. `taps` says where, for `featx.tap`; printed, it is a table.

    map_sizes: (h, w) of each map for images of `size` (height, width).
    """

    def __init__(self, found: "Sequence[Found]", size: Size) -> None:
        super().__init__(FeatureInfo(one.form.chs, one.form.reduction, one.tap.name) for one in found)
        self.taps = tuple(one.tap for one in found)
        self.map_sizes = tuple(one.map_size(size) for one in found)
        self.size = size

    def __repr__(self) -> str:
        height, width = self.size
        width_of_names = max(len(name) for name in ["module", *self.names()])
        rows = [f"  {'module':{width_of_names}}  channels  reduction  map for {height}x{width}"]
        for level, (h, w) in zip(self, self.map_sizes, strict=True):
            rows.append(f"  {level.name:{width_of_names}}  {level.chs:8}  {f'1/{level.reduction}':>9}  {h}x{w}")
        return "\n".join(rows)


@dataclass(frozen=True, slots=True)
class Found:
    """A module whose output is a map, its class, and a bit for each module and parameter the map depends on."""

    tap: Tap
    form: MapLayout
    value: Tensor
    kind: str
    sources: int

    def map_size(self, size: Size) -> Size:
        prefix_and_map = self.form.split(self.value, size, self.tap.name)
        h, w = prefix_and_map[1].shape[-2:]
        return h, w


def discover(
    model: nn.Module,
    input_size: Size | None = None,
    *,
    example: Tensor | None = None,
    argument: str | None = None,
    within: str = "",
) -> Proposal:
    """The deepest module at each reduction whose output is a map or a grid of tokens, shallow to deep.

    A model with one reduction, such as a ViT, has a level for each of its blocks. Pass the result to `tap`, or choose
    among its names.

    input_size: (height, width) in pixels of the images to run it for, without values. By default as the model states.
    example: images instead, for a model that takes other channels than its first convolution, or that needs values.
    argument: the keyword argument under which the model takes images, if that is not its first.
    within: path of a module to look in, such as "encoder"; "" is all of the model.

    Raises ContractError if the model does not run, or if nothing in it is a map that is computed once.
    """
    require_module(model)
    if input_size is not None and example is not None:
        raise ArgumentError("input_size and example both say how large images are: pass one of them")
    if not isinstance(within, str):
        raise wrong("within", within, "the path of a module")
    if within and within not in dict(model.named_modules()):
        raise ArgumentError(f"within={within!r}: {type(model).__name__} has no such module")
    if input_size is not None:
        example = meta_images(model, require_size(input_size, "input_size"))
    seen = survey(model, example, argument)
    found = propose(seen, model, within)
    if not found:
        raise ContractError(f"{type(model).__name__} has no module that returns a map once, for images {_size(seen)}")
    return Proposal(found, _size(seen))


def propose(seen: Survey, model: nn.Module, within: str = "") -> list[Found]:
    """The levels in a survey of `model`, or of its module at the path `within`."""
    every = {one.tap.name: one for one in _maps(seen, model)}
    candidates = [one for name, one in every.items() if not within or name.startswith(f"{within}.")]
    candidates = [one for one in candidates if not _aside(one, every)]
    reductions = dict.fromkeys(one.form.reduction for one in candidates)
    if len(reductions) == 1 and (blocks := _blocks(candidates)):
        return blocks
    groups = [[one for one in candidates if one.form.reduction == reduction] for reduction in reductions]
    whole = max((one.sources.bit_count() for one in candidates), default=0)
    chosen: list[Found] = []
    for group in sorted(groups, key=lambda group: candidates.index(group[-1])):
        chosen.append(_level(group, [one.tap.name for one in chosen], whole))
    return chosen


def _level(group: Sequence[Found], others: Sequence[str], whole: int) -> Found:
    """The last of the maps with one reduction that is no intermediate result of a block.

    That is the last one among the modules that are nested least deeply, if little is done at this reduction after it.
    A container that holds one of the `others` is no level of its own.
    """
    done = max(one.sources.bit_count() for one in group)
    free = [one for one in group if not any(other.startswith(f"{one.tap.name}.") for other in others)]
    for depth in sorted({one.tap.name.count(".") for one in free}):
        last = [one for one in free if one.tap.name.count(".") == depth][-1]
        if done - last.sources.bit_count() <= LITTLE * whole:
            return last
    return group[-1]


def _aside(one: Found, every: dict[str, Found]) -> bool:
    """Whether the map only serves to compute a finer one, such as the keys and values of an attention."""
    parts = one.tap.name.split(".")
    owners = (every.get(".".join(parts[:end])) for end in range(1, len(parts)))
    return any(owner is not None and owner.form.reduction < one.form.reduction for owner in owners)


def _maps(seen: Survey, model: nn.Module) -> Iterator[Found]:
    """What modules return that is a map, and depends on parameters."""
    bit, sources_of = bits(model), dependencies(seen.runs[0])
    learnt = sum(bit[name] for name, _ in model.named_parameters())
    for path, calls in seen.runs[0].calls.items():
        tap = _first_tensor(path, calls[0].output)
        form = form_of(tap, path, seen.measured) if path and tap is not None and len(calls) == 1 else None
        if tap is not None and isinstance(form, MapLayout):
            value = tap.value(calls[0].output)
            sources = sources_of[calls[0], id(value)]
            if sources & learnt:
                yield Found(tap, form, value, type(model.get_submodule(path)).__name__, sources)


def _first_tensor(path: str, output: Any) -> Tap | None:
    if isinstance(output, Tensor):
        return Tap(path)
    entries = output.items() if isinstance(output, dict) else enumerate(output if isinstance(output, tuple) else ())
    return next((Tap(path, key) for key, value in entries if isinstance(value, Tensor)), None)


def _blocks(candidates: Sequence[Found]) -> list[Found]:
    """The most modules of one class that one container numbers, if there are at least two."""
    rows: dict[tuple[str, str], list[Found]] = {}
    for one in candidates:
        numbered = re.fullmatch(r"(.*?)\d+", one.tap.name)
        if numbered:
            rows.setdefault((numbered[1], one.kind), []).append(one)
    longest = max(rows.values(), key=len, default=[])
    return longest if len(longest) > 1 else []


def _size(seen: Survey) -> Size:
    height, width = seen.images.shape[2:]
    return height, width
