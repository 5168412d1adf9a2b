"""Dependencies of traced tensors on modules and parameters, followed through in-place operations and views."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .module_trace import ModuleCall, ModuleTrace, Operation, storage_of

# The provenance of a tensor, and that of later writes to its storage, possibly through another view.
State = tuple[int, int]
Returned = tuple[ModuleCall, int]  # a call, and the id of a tensor in its output
Combine = Callable[[Operation, int, list[State]], int]
Producer = tuple[str, int]  # path of a module, position in its output


def bits(model: nn.Module) -> dict[str, int]:
    """A bit for each path of a module and each name of a parameter."""
    names = [*(path for path, _ in model.named_modules()), *(name for name, _ in model.named_parameters())]
    return {name: 1 << i for i, name in enumerate(names)}


def dependencies(trace: ModuleTrace) -> dict[Returned, int]:
    """The `bits` of the modules and parameters that each returned tensor depends on."""
    bit = bits(trace.model)

    @cache
    def enclosing(call: ModuleCall) -> int:
        return 0 if call.caller is None else bit[call.path] | enclosing(call.caller)

    def union(operation: Operation, _: int, operands: list[State]) -> int:
        sources = enclosing(operation.call)
        for computed, written in operands:
            sources |= computed | written
        return sources

    initial = {id(parameter): bit[name] for name, parameter in trace.model.named_parameters()}
    return {returned: computed | written for returned, (computed, written) in _propagate(trace, initial, union, bit)}


def computations(trace: ModuleTrace) -> dict[Returned, int]:
    """A hash of the computation of each returned tensor from parameters, buffers and images.

    It covers the operations and their arguments. Tensors computed from constants alone are ignored, because some models
    cache them from one forward to the next.
    """

    def combine(operation: Operation, position: int, operands: list[State]) -> int:
        if not any(computed or written for computed, written in operands):
            return 0
        constants = _without_tensors(tuple(operation.arguments.items()))
        return hash((operation.kind, position, constants, *operands))

    named = [*trace.model.named_parameters(), *trace.model.named_buffers(), ("images", trace.images)]
    initial = {id(tensor): hash(name) for name, tensor in named}
    return {returned: hash(state) for returned, state in _propagate(trace, initial, combine, {})}


def _without_tensors(value: Any) -> Any:
    """Arguments as hashable tuples, with None in place of tensors."""
    if isinstance(value, list | tuple):
        return tuple(map(_without_tensors, value))
    return None if isinstance(value, Tensor) else value


def _propagate(
    trace: ModuleTrace, initial: Mapping[int, int], combine: Combine, marks: Mapping[str, int]
) -> Iterator[tuple[Returned, State]]:
    """The state of each returned tensor at the time of its return.

    Args:
        trace: the trace.
        initial: states of tensors by id.
        combine: computes the state of an output from the operation, the output's position (-1 for what the operation
            writes in place) and the states of the operands.
        marks: bits that a module adds to its outputs, by path.
    """
    computed, written = dict(initial), dict[int, int]()

    def state(tensor: Tensor) -> State:
        return computed.get(id(tensor), 0), written.get(storage_of(tensor), 0)

    for event in trace.events:
        if isinstance(event, Operation):
            operands = [state(tensor) for tensor in event.read()]
            computed.update((id(tensor), combine(event, i, operands)) for i, tensor in enumerate(event.outputs))
            written.update((storage_of(tensor), combine(event, -1, operands)) for tensor in event.written())
            continue
        for leaf in event.leaves if event.caller is not None else ():
            computed[id(leaf)] = computed.get(id(leaf), 0) | marks.get(event.path, 0)
        yield from (((event, id(leaf)), state(leaf)) for leaf in event.leaves)


def producers(trace: ModuleTrace) -> dict[int, list[Producer]]:
    """The modules that returned each tensor with its final values, by the tensor's id; the last call comes first."""
    result: dict[int, list[Producer]] = {}
    for call in (event for event in reversed(trace.events[:-1]) if isinstance(event, ModuleCall)):
        output = call.output
        for position, value in enumerate(output if isinstance(output, tuple | list) else (output,)):
            if isinstance(value, Tensor) and not call.overwritten(value):
                result.setdefault(id(value), []).append((call.path, position))
    return result


def rearranged(trace: ModuleTrace) -> dict[int, Tensor]:
    """The tensors that views and clones have their values from, by the id of the view or clone."""
    result: dict[int, Tensor] = {}
    for operation in trace.operations:
        written, source = {id(tensor) for tensor in operation.written()}, next(operation.read(), None)
        for output in operation.outputs:
            result.pop(id(output), None)
            is_clone = operation.kind is torch.ops.aten.clone.default
            is_view = source is not None and storage_of(output) == storage_of(source)
            if source is not None and id(output) not in written and (is_clone or is_view):
                result[id(output)] = source
    return result
