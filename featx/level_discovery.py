"""`discover`: propose the levels of any model."""

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
from .tracing.survey import Survey, survey_model
from .wrappers.hooked import layout_or_problem

# Largest fraction of a model's modules and parameters that counts as a part of a block, not as a stage.
BLOCK_PART = 0.05


class Proposal(Levels):
    """Proposed levels of a model. Its repr is a table.

    Attributes:
        taps: the modules that return the maps, for `featx.tap`.
        map_sizes: (h, w) of each map for images of `size`.
        size: (height, width) of the images in pixels.
    """

    def __init__(self, candidates: "Sequence[Candidate]", size: Size) -> None:
        super().__init__(FeatureInfo(c.layout.chs, c.layout.reduction, c.tap.name) for c in candidates)
        self.taps = tuple(c.tap for c in candidates)
        self.map_sizes = tuple(c.map_size(size) for c in candidates)
        self.size = size

    def __repr__(self) -> str:
        height, width = self.size
        width_of_names = max(len(name) for name in ["module", *self.names()])
        rows = [f"  {'module':{width_of_names}}  channels  reduction  map for {height}x{width}"]
        for level, (h, w) in zip(self, self.map_sizes, strict=True):
            rows.append(f"  {level.name:{width_of_names}}  {level.chs:8}  {f'1/{level.reduction}':>9}  {h}x{w}")
        return "\n".join(rows)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A module whose output is a map.

    Attributes:
        tap: the module.
        layout: the layout of the map.
        value: the output on the meta device.
        kind: the class of the module.
        sources: bit set of the modules and parameters that the map depends on.
    """

    tap: Tap
    layout: MapLayout
    value: Tensor
    kind: str
    sources: int

    def map_size(self, size: Size) -> Size:
        prefix_and_map = self.layout.split(self.value, size, self.tap.name)
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
    """Propose levels: the deepest module at each reduction whose output is a map or a grid of tokens, shallow to deep.

    For a model with a single reduction, such as a ViT, each block is a level. Pass the result to `tap`, or select from
    its names.

    Args:
        model: the model.
        input_size: (height, width) in pixels of the images to trace with, on the meta device. By default what the model
            declares.
        example: images to trace with instead, for a model whose images have other channels than its first convolution,
            or that does not run on the meta device.
        argument: name of the keyword argument for images, if they are not the model's first argument.
        within: path of a module to search, such as "encoder"; "" for the whole model.

    Raises:
        ArgumentError: `input_size` and `example` are both given, or `within` does not exist.
        ContractError: the model does not run, or no module returns a map and is called once.
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
    trace = survey_model(model, example, argument)
    candidates = propose(trace, model, within)
    if not candidates:
        raise ContractError(f"{type(model).__name__} has no module that returns a map once, for images {_size(trace)}")
    return Proposal(candidates, _size(trace))


def propose(trace: Survey, model: nn.Module, within: str = "") -> list[Candidate]:
    """The levels in a survey of `model`, or of its module at the path `within`."""
    every = {c.tap.name: c for c in _maps(trace, model)}
    candidates = [c for name, c in every.items() if not within or name.startswith(f"{within}.")]
    candidates = [c for c in candidates if not _is_auxiliary(c, every)]
    reductions = dict.fromkeys(c.layout.reduction for c in candidates)
    if len(reductions) == 1 and (blocks := _blocks(candidates)):
        return blocks
    groups = [[c for c in candidates if c.layout.reduction == reduction] for reduction in reductions]
    total = max((c.sources.bit_count() for c in candidates), default=0)
    levels: list[Candidate] = []
    for group in sorted(groups, key=lambda group: candidates.index(group[-1])):
        levels.append(_level(group, [level.tap.name for level in levels], total))
    return levels


def _level(group: Sequence[Candidate], others: Sequence[str], total: int) -> Candidate:
    """The last map of one reduction that is not an intermediate result of a block.

    That is the last map among the least deeply nested modules after which little is computed at this reduction. A
    container that holds one of the `others` is not a level.
    """
    done = max(c.sources.bit_count() for c in group)
    free = [c for c in group if not any(other.startswith(f"{c.tap.name}.") for other in others)]
    for depth in sorted({c.tap.name.count(".") for c in free}):
        last = [c for c in free if c.tap.name.count(".") == depth][-1]
        if done - last.sources.bit_count() <= BLOCK_PART * total:
            return last
    return group[-1]


def _is_auxiliary(candidate: Candidate, every: dict[str, Candidate]) -> bool:
    """Whether the map is only used to compute a finer one, such as the keys and values of an attention."""
    parts = candidate.tap.name.split(".")
    owners = (every.get(".".join(parts[:end])) for end in range(1, len(parts)))
    return any(owner is not None and owner.layout.reduction < candidate.layout.reduction for owner in owners)


def _maps(trace: Survey, model: nn.Module) -> Iterator[Candidate]:
    """Outputs of modules that are maps and depend on parameters."""
    bit, sources_of = bits(model), dependencies(trace.traces[0])
    parameters = sum(bit[name] for name, _ in model.named_parameters())
    for path, calls in trace.traces[0].calls.items():
        tap = _first_tensor(path, calls[0].output)
        layout = layout_or_problem(tap, path, trace.layout_traces) if path and tap and len(calls) == 1 else None
        if tap is not None and isinstance(layout, MapLayout):
            value = tap.value(calls[0].output)
            sources = sources_of[calls[0], id(value)]
            if sources & parameters:
                yield Candidate(tap, layout, value, type(model.get_submodule(path)).__name__, sources)


def _first_tensor(path: str, output: Any) -> Tap | None:
    if isinstance(output, Tensor):
        return Tap(path)
    entries = output.items() if isinstance(output, dict) else enumerate(output if isinstance(output, tuple) else ())
    return next((Tap(path, key) for key, value in entries if isinstance(value, Tensor)), None)


def _blocks(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The longest series of modules of one class in one container, if it has at least two."""
    rows: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        numbered = re.fullmatch(r"(.*?)\d+", candidate.tap.name)
        if numbered:
            rows.setdefault((numbered[1], candidate.kind), []).append(candidate)
    longest = max(rows.values(), key=len, default=[])
    return longest if len(longest) > 1 else []


def _size(trace: Survey) -> Size:
    height, width = trace.images.shape[2:]
    return height, width
