"""What the tensors of a trace are made of, followed through every operation, in place and through views too."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .module_trace import ModuleCall, ModuleTrace, Operation, storage_of

# Of a tensor: what made it, and what was written into its memory since, perhaps through another view.
State = tuple[int, int]
Returned = tuple[ModuleCall, int]  # a call, and the id of a tensor that it returned
Step = Callable[[Operation, int, list[State]], int]
Maker = tuple[str, int]  # path of a module, position in what it returns


def bits(model: nn.Module) -> dict[str, int]:
    """A bit for each path of a module and each name of a parameter."""
    names = [*(path for path, _ in model.named_modules()), *(name for name, _ in model.named_parameters())]
    return {name: 1 << i for i, name in enumerate(names)}


def dependencies(trace: ModuleTrace) -> dict[Returned, int]:
    """For each tensor that a call returned, the `bits` of the modules and parameters that it depends on."""
    bit = bits(trace.model)

    @cache
    def around(call: ModuleCall) -> int:
        return 0 if call.caller is None else bit[call.path] | around(call.caller)

    def step(operation: Operation, _: int, states: list[State]) -> int:
        sources = around(operation.call)
        for made, written in states:
            sources |= made | written
        return sources

    start = {id(parameter): bit[name] for name, parameter in trace.model.named_parameters()}
    return {returned: made | written for returned, (made, written) in _states(trace, start, step, bit)}


def computations(trace: ModuleTrace) -> dict[Returned, int]:
    """For each tensor that a call returned, a hash of how it was made of parameters, buffers and images.

    That is of the operations and their settings. Tensors that are made of numbers alone count for nothing, because
    models keep some of them from one run to the next.
    """

    def step(operation: Operation, place: int, states: list[State]) -> int:
        if not any(made or written for made, written in states):
            return 0
        settings = _settings(tuple(operation.arguments.items()))
        return hash((operation.kind, place, settings, *states))

    named = [*trace.model.named_parameters(), *trace.model.named_buffers(), ("images", trace.images)]
    start = {id(tensor): hash(name) for name, tensor in named}
    return {returned: hash(state) for returned, state in _states(trace, start, step, {})}


def _settings(value: Any) -> Any:
    """What an operation was called with beside tensors, each of which leaves a gap."""
    if isinstance(value, list | tuple):
        return tuple(map(_settings, value))
    return None if isinstance(value, Tensor) else value


def _states(
    trace: ModuleTrace, start: Mapping[int, int], step: Step, marks: Mapping[str, int]
) -> Iterator[tuple[Returned, State]]:
    """The state of each tensor that a call returned, when it did.

    start: of tensors, by their id. step: what an operation makes in the place of that number, from the states of its
    operands; -1 is what it writes. marks: what a module adds to what it returns.
    """
    made, written = dict(start), dict[int, int]()

    def state(tensor: Tensor) -> State:
        return made.get(id(tensor), 0), written.get(storage_of(tensor), 0)

    for event in trace.events:
        if isinstance(event, Operation):
            states = [state(tensor) for tensor in event.read()]
            made.update((id(tensor), step(event, place, states)) for place, tensor in enumerate(event.outputs))
            written.update((storage_of(tensor), step(event, -1, states)) for tensor in event.written())
            continue
        for leaf in event.leaves if event.caller is not None else ():
            made[id(leaf)] = made.get(id(leaf), 0) | marks.get(event.path, 0)
        yield from (((event, id(leaf)), state(leaf)) for leaf in event.leaves)


def makers(trace: ModuleTrace) -> dict[int, list[Maker]]:
    """By the id of a tensor, the modules that returned it as it is in the end, the last to end first."""
    found: dict[int, list[Maker]] = {}
    for call in (event for event in reversed(trace.events[:-1]) if isinstance(event, ModuleCall)):
        output = call.output
        for position, value in enumerate(output if isinstance(output, tuple | list) else (output,)):
            if isinstance(value, Tensor) and not call.overwritten(value):
                found.setdefault(id(value), []).append((call.path, position))
    return found


def moves(trace: ModuleTrace) -> dict[int, Tensor]:
    """By the id of a tensor, the one whose values it has, which a view or a copy put in another order at most."""
    found: dict[int, Tensor] = {}
    for operation in trace.operations:
        written, source = {id(tensor) for tensor in operation.written()}, next(operation.read(), None)
        for output in operation.outputs:
            found.pop(id(output), None)
            if source is not None and id(output) not in written and _has_values_of(source, output, operation.kind):
                found[id(output)] = source
    return found


def _has_values_of(source: Tensor, output: Tensor, kind: Any) -> bool:
    return kind is torch.ops.aten.clone.default or storage_of(output) == storage_of(source)
