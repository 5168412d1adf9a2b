"""Leave out of a model what some outputs do not depend on, while its own forward stays as it is.

Modules give way to ones that compute nothing, as many as can: the model's own forward must make the outputs by the same
operations from the same parameters as before.
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

# The tensors that are asked for in a run, each with the call that returned it.
Outputs = Callable[[ModuleTrace], Sequence[tuple[ModuleCall, Tensor]]]


def prune(model: nn.Module, read: Read, images: Tensor, hooks: tuple[type, ...] = ()) -> tuple[str, ...]:
    """Leave out of `model` what `read` does not need, in place, and return the names of what it could not lack.

    These are parameters that no output comes from, but which the model's code insists on.

    hooks: classes of hooks that run on what stands in for a module, too.
    """
    images = torch.empty(2, *images.shape[1:], dtype=images.dtype, device="meta")
    seen = Survey(images, None, read).begun(model)
    if not _Unneeded(model, seen, _returned).parameters:
        return ()
    seen = seen.enlarged()
    paths, _, unneeded = removable(model, seen, _returned, hooks)
    skip(model, paths, seen, hooks)
    return tuple(name for name, _ in model.named_parameters() if name in unneeded)


def _returned(run: ModuleTrace) -> list[tuple[ModuleCall, Tensor]]:
    return [(run.root, tensor) for tensor in run.root.leaves]


class Removable(NamedTuple):
    """Paths of modules and parameters without which outputs stay the same, and the same runs without them.

    seen: None for a model that does not even do twice the same as it is. unneeded: names of the parameters that no
    output depends on, whether they can be left out or not.
    """

    paths: Sequence[str]
    seen: Survey | None
    unneeded: frozenset[str]


def removable(model: nn.Module, seen: Survey, outputs: Outputs, hooks: tuple[type, ...] = ()) -> Removable:
    """As much of `model` as can be found that together is not needed for `outputs`.

    It is searched for by the first run alone. Only if other runs are not the same without it, every trial makes all.
    """
    trials = _Trials(model, seen, outputs, hooks)
    last = trials.search(1) or trials.search(len(seen.runs))
    return Removable(trials.chosen, last, trials.unneeded.parameters)


class _Trials:
    """Runs of a model without the modules and parameters at the `chosen` paths.

    done: those of the last trial that worked.
    """

    def __init__(self, model: nn.Module, seen: Survey, outputs: Outputs, hooks: tuple[type, ...]) -> None:
        self.model, self.seen, self.outputs, self.hooks = model, seen, outputs, hooks
        self.unneeded = _Unneeded(model, seen, outputs)
        self.expected = [_made(run, outputs) for run in seen.runs]
        self.length, self.chosen, self.done = 1, list[str](), list[ModuleTrace]()

    def search(self, length: int) -> Survey | None:
        """The runs without what is chosen by trials of that length; None if they are not all the same."""
        self.length, self.chosen, self.done = length, [], []
        self.grow(self.unneeded.inside(""))
        if not self.done and not self.works([]):
            return None
        rest = self.repeated(self.done[0].model, range(length, len(self.expected)))
        return None if rest is None else replace(self.seen, runs=(*self.done, *rest))

    def works(self, paths: Sequence[str]) -> bool:
        """Whether the outputs stay the same without these, which are then chosen."""
        twin = self.seen.twin(self.model)
        skip(twin, paths, self.seen, self.hooks)
        done = self.repeated(twin, range(self.length))
        if done is None:
            return False
        self.chosen, self.done = list(paths), done
        return True

    def repeated(self, twin: nn.Module, places: Iterable[int]) -> list[ModuleTrace] | None:
        """The runs at these places of a copy of the model; None if one makes the outputs otherwise."""
        done = list[ModuleTrace]()
        for place in places:
            try:
                done.append(self.seen.again(twin, place))
            except REFUSED:  # its forward does not take zeros where it had results
                return None
            if _made(done[-1], self.outputs) != self.expected[place]:
                return None
        return done

    def grow(self, group: Sequence[str]) -> None:
        """Choose among the group, trying all of it first, then halves of it, and parts of what is needed whole."""
        if not group or self.works([*self.chosen, *group]):
            return
        half = len(group) // 2
        for part in (group[half:], group[:half]) if half else (self.unneeded.inside(group[0]),):
            self.grow(part)


def _made(run: ModuleTrace, outputs: Outputs) -> list[tuple[object, ...]]:
    """Of each output, how often its module was called, its shape and, in eval mode, a hash of how it was computed."""
    how = {} if run.training else computations(run)
    return [
        (
            len(run.calls.get(call.path, ())),
            tuple(value.shape),
            how.get((call, id(value))),
        )
        for call, value in outputs(run)
    ]


class _Unneeded:
    """The parts of a model that outputs do not depend on.

    parameters: the names of those, and of those inside such parts.
    """

    def __init__(self, model: nn.Module, seen: Survey, outputs: Outputs) -> None:
        self.model, self.bits, self.needs = model, bits(model), _needs(seen, outputs)
        self.parameters = frozenset(name for name, _ in model.named_parameters() if not self.bits[name] & self.needs)
        self.paths = {module: path for path, module in model.named_modules()}
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        calls = dict[str, list[ModuleCall]]()
        for run in seen.runs:
            for path, made in run.calls.items():
                calls.setdefault(path, []).extend(made)
        self.places = {path: place for place, path in enumerate(calls)}
        self.kept = {path for path, made in calls.items() if not is_predictable(made)}

    def inside(self, path: str) -> list[str]:
        """Paths of the outermost modules and of the parameters in the module at `path`, in running order.

        A container that is not called itself is left, because what calls its entries has to find them, and so is a
        module that is called without a tensor, from which the shape of its result would follow.
        """
        parts = dict.fromkeys(self._parts(self.model.get_submodule(path))) if path in self.paths.values() else ()
        return sorted(parts, key=lambda part: self.places.get(part, len(self.places)))

    def _parts(self, module: nn.Module) -> Iterator[str]:
        own = [self.names[id(parameter)] for parameter in module._parameters.values() if parameter is not None]
        yield from (name for name in own if name in self.parameters)
        for child in module.children():
            path = self.paths[child]
            if self._is_needed(child) or path in self.kept or (path not in self.places and child._modules):
                yield from self._parts(child)
            elif path in self.places or child._parameters:
                yield path

    def _is_needed(self, module: nn.Module) -> bool:
        paths = [*(self.paths[part] for part in module.modules())]
        paths += [self.names[id(parameter)] for parameter in module.parameters()]
        return any(self.bits[path] & self.needs for path in paths)


def _needs(seen: Survey, outputs: Outputs) -> int:
    """The bits of the modules and parameters that the outputs depend on."""
    needs = 0
    for run in seen.runs:
        sources = dependencies(run)
        for call, value in outputs(run):
            needs |= sources[call, id(value)]
    return needs


def skip(model: nn.Module, paths: Sequence[str], seen: Survey, hooks: tuple[type, ...] = ()) -> None:
    """Replace the modules at `paths` in place by ones that compute nothing.

    Parameters there become zeros, or None if no operation reads them.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    stand_ins = {
        modules[path]: Placeholder(
            modules[path], [run.calls[path][-1] for run in seen.runs if path in run.calls], hooks
        )
        for path in paths
        if path in modules
    }
    skipped = [path for path in paths if path in parameters]
    read = _read(seen) if skipped else ()
    # memory of their own, because DistributedDataParallel writes to every buffer
    zeros = {id(parameters[path]): torch.zeros_like(parameters[path]) if path in read else None for path in skipped}
    for parent in modules.values():  # a module or a parameter may be registered in several
        parent._modules.update(
            (name, stand_ins[child]) for name, child in parent._modules.items() if child in stand_ins
        )
        for name in [name for name, parameter in parent._parameters.items() if id(parameter) in zeros]:
            parent.register_buffer(name, zeros[id(parent._parameters.pop(name))], persistent=False)


def _read(seen: Survey) -> set[str]:
    """Names of the parameters that an operation reads."""
    return {name for run in seen.runs for name, parameter in run.model.named_parameters() if run.readers(parameter)}
