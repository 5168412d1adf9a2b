"""Pruning of modules and parameters that some outputs do not depend on, without changing the model's forward.

Placeholders replace as many modules as possible: the forward must still compute the outputs by the same operations from
the same parameters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .dependencies import bits, computations, dependencies
from .module_trace import ModuleCall, ModuleTrace
from .placeholders import Placeholder, is_predictable
from .survey import Read, Survey
from .third_party_errors import REFUSED

# A function that returns the required tensors of a trace, each with the call that returned it.
Outputs = Callable[[ModuleTrace], Sequence[tuple[ModuleCall, Tensor]]]


def prune(model: nn.Module, read: Read, images: Tensor, hooks: tuple[type, ...] = ()) -> tuple[str, ...]:
    """Prune what `read` does not need from `model`, in place.

    Args:
        model: the model, on the meta device or another one.
        read: a function of the model and the images that returns the required tensors.
        images: (N, C, H, W), of which the size and the dtype are used.
        hooks: classes of forward hooks that placeholders keep.

    Returns:
        Names of the parameters that stay although no output depends on them, because the model's code needs them.
    """
    images = torch.empty(2, *images.shape[1:], dtype=images.dtype, device="meta")
    survey = Survey(images, None, read).with_first_trace(model)
    if not _Unneeded(model, survey, _returned).parameters:
        return ()
    survey = survey.with_larger_images()
    paths, _, unneeded = removable(model, survey, _returned, hooks)
    insert_placeholders(model, paths, survey, hooks)
    return tuple(name for name, _ in model.named_parameters() if name in unneeded)


def _returned(trace: ModuleTrace) -> list[tuple[ModuleCall, Tensor]]:
    return [(trace.root, tensor) for tensor in trace.root.leaves]


class Removable(NamedTuple):
    """Modules and parameters that a model can run without.

    Attributes:
        paths: their paths.
        survey: the traces without them; None if the model's forward is not deterministic.
        unneeded: names of all parameters that no output depends on, including those that cannot be removed.
    """

    paths: Sequence[str]
    survey: Survey | None
    unneeded: frozenset[str]


def removable(model: nn.Module, survey: Survey, outputs: Outputs, hooks: tuple[type, ...] = ()) -> Removable:
    """Search for modules and parameters that can be removed together without changing `outputs`.

    The search repeats the first trace only. If another trace then differs, it starts again and repeats all traces.
    """
    search = _Search(model, survey, outputs, hooks)
    pruned = search.run(1) or search.run(len(survey.traces))
    return Removable(search.removed, pruned, search.unneeded.parameters)


class _Search:
    """The search for removable modules and parameters.

    Attributes:
        depth: number of traces that each trial repeats.
        removed: paths without which the last successful trial ran.
        traces: the traces of that trial.
    """

    def __init__(self, model: nn.Module, survey: Survey, outputs: Outputs, hooks: tuple[type, ...]) -> None:
        self.model, self.survey, self.outputs, self.hooks = model, survey, outputs, hooks
        self.unneeded = _Unneeded(model, survey, outputs)
        self.expected = [_fingerprint(trace, outputs) for trace in survey.traces]
        self.depth, self.removed, self.traces = 1, list[str](), list[ModuleTrace]()

    def run(self, depth: int) -> Survey | None:
        """All traces without what trials of that depth remove; None if one of them computes the outputs differently."""
        self.depth, self.removed, self.traces = depth, [], []
        self.remove(self.unneeded.inside(""))
        if not self.traces and not self.succeeds([]):
            return None
        rest = self.repeat(self.traces[0].model, range(depth, len(self.expected)))
        return None if rest is None else replace(self.survey, traces=(*self.traces, *rest))

    def remove(self, group: Sequence[str]) -> None:
        """Remove what is possible of the group: all of it, or else parts of its halves, or parts of a single module."""
        if not group or self.succeeds([*self.removed, *group]):
            return
        half = len(group) // 2
        for part in (group[half:], group[:half]) if half else (self.unneeded.inside(group[0]),):
            self.remove(part)

    def succeeds(self, paths: Sequence[str]) -> bool:
        """Whether the outputs stay the same without the modules and parameters at `paths`, which are then removed."""
        twin = self.survey.twin(self.model)
        insert_placeholders(twin, paths, self.survey, self.hooks)
        traces = self.repeat(twin, range(self.depth))
        if traces is None:
            return False
        self.removed, self.traces = list(paths), traces
        return True

    def repeat(self, twin: nn.Module, indices: Iterable[int]) -> list[ModuleTrace] | None:
        """The traces of a pruned copy; None if one of them computes the outputs differently."""
        traces = list[ModuleTrace]()
        for index in indices:
            try:
                traces.append(self.survey.repeated(twin, index))
            except REFUSED:  # its forward does not accept the zeros
                return None
            if _fingerprint(traces[-1], self.outputs) != self.expected[index]:
                return None
        return traces


def _fingerprint(trace: ModuleTrace, outputs: Outputs) -> list[tuple[object, ...]]:
    """For each output the number of its module's calls, its shape, and in eval mode the hash of its computation."""
    hashes = {} if trace.training else computations(trace)
    return [
        (len(trace.calls.get(call.path, ())), tuple(value.shape), hashes.get((call, id(value))))
        for call, value in outputs(trace)
    ]


class _Unneeded:
    """The modules and parameters that outputs do not depend on; `parameters` are the names of the latter."""

    def __init__(self, model: nn.Module, survey: Survey, outputs: Outputs) -> None:
        self.model, self.bits, self.needed = model, bits(model), _needed(survey, outputs)
        self.parameters = frozenset(name for name, _ in model.named_parameters() if not self.bits[name] & self.needed)
        self.paths = {module: path for path, module in model.named_modules()}
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        calls = dict[str, list[ModuleCall]]()
        for trace in survey.traces:
            for path, calls_of_path in trace.calls.items():
                calls.setdefault(path, []).extend(calls_of_path)
        self.order = {path: position for position, path in enumerate(calls)}
        self.unpredictable = {path for path, calls_of_path in calls.items() if not is_predictable(calls_of_path)}

    def inside(self, path: str) -> list[str]:
        """Paths of the unneeded outermost modules and parameters in the module at `path`, in running order.

        A container that is not called itself is opened instead, because its entries are accessed through it. So is a
        module whose output a placeholder cannot predict.
        """
        parts = dict.fromkeys(self._parts(self.model.get_submodule(path))) if path in self.paths.values() else ()
        return sorted(parts, key=lambda part: self.order.get(part, len(self.order)))

    def _parts(self, module: nn.Module) -> Iterator[str]:
        names = [self.names[id(parameter)] for parameter in module._parameters.values() if parameter is not None]
        yield from (name for name in names if name in self.parameters)
        for child in module.children():
            path = self.paths[child]
            if self._is_needed(child) or path in self.unpredictable or (path not in self.order and child._modules):
                yield from self._parts(child)
            elif path in self.order or child._parameters:
                yield path

    def _is_needed(self, module: nn.Module) -> bool:
        paths = [self.paths[child] for child in module.modules()]
        paths += [self.names[id(parameter)] for parameter in module.parameters()]
        return any(self.bits[path] & self.needed for path in paths)


def _needed(survey: Survey, outputs: Outputs) -> int:
    """The bits of the modules and parameters that the outputs depend on."""
    needed = 0
    for trace in survey.traces:
        sources = dependencies(trace)
        for call, value in outputs(trace):
            needed |= sources[call, id(value)]
    return needed


def insert_placeholders(model: nn.Module, paths: Sequence[str], survey: Survey, hooks: tuple[type, ...] = ()) -> None:
    """Replace the modules at `paths` by placeholders, in place, and the parameters by zeros, or by None if not read."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    placeholders = dict[nn.Module | None, Placeholder]()
    for path in (path for path in paths if path in modules):
        calls = [trace.calls[path][-1] for trace in survey.traces if path in trace.calls]
        placeholders[modules[path]] = Placeholder(modules[path], calls, hooks)
    removed = [path for path in paths if path in parameters]
    read = _read_parameters(survey) if removed else ()
    # memory of their own, because DistributedDataParallel writes to every buffer
    zeros = {id(parameters[path]): torch.zeros_like(parameters[path]) if path in read else None for path in removed}
    for parent in modules.values():  # a module or a parameter may be registered in several
        parent._modules.update(
            (name, placeholders[child]) for name, child in parent._modules.items() if child in placeholders
        )
        for name in [name for name, parameter in parent._parameters.items() if id(parameter) in zeros]:
            parent.register_buffer(name, zeros[id(parent._parameters.pop(name))], persistent=False)


def _read_parameters(survey: Survey) -> set[str]:
    """Names of the parameters that an operation reads."""
    traces = survey.traces
    return {name for trace in traces for name, value in trace.model.named_parameters() if trace.readers(value)}
