"""A model of transformers without what its maps do not need, proven on tensors without values."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..wrappers.refusals import REFUSED
from ..wrappers.shortcuts import Shortcuts

Module = TypeVar("Module", bound=nn.Module)
Read = Callable[[Any, Tensor], Sequence[Tensor]]

# What an autograd graph is made of: a hash of each tensor's computation, and the names of the parameters in it.
Computation = tuple[tuple[int, ...], frozenset[str]]


class PassThrough(nn.Module):
    """Stands for a module whose result no map needs, and returns what that got: its first input, or all of them.

    What was recorded of the module's inputs is recorded of these.
    """

    def __init__(self, replaced: nn.Module, every: bool = False) -> None:
        super().__init__()
        self.every = every
        self._forward_hooks = replaced._forward_hooks.copy()

    def forward(self, x: Any = None, *others: Any, **_: Any) -> Any:
        return (x, *others) if self.every else x


def shared_copy(model: Module) -> Module:
    """A copy of the modules of `model`, with its tensors themselves, also those it keeps of its last run."""
    held = [value for module in model.modules() for value in vars(module).values()]
    kept = [value for values in held if isinstance(values, dict) for value in values.values()]
    tensors = [value for value in [*held, *kept] if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers(), *tensors]})


@torch.inference_mode(False)  # where tensors keep what made them
def read_on_meta(model: nn.Module, read: Read, x: Tensor, *, grad: bool = False) -> tuple[list[Tensor], Computation]:
    """What `read(model, x)` returns without computing it, and how it would be computed (if `grad`)."""
    x = _without_values(x)
    state = {name: _without_values(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    for name, _ in model.named_parameters():
        state[name].requires_grad_(grad)
    call = _Call(shared_copy(model), read)  # what models keep of a run must not be without values
    with torch.set_grad_enabled(grad), Shortcuts():
        outputs = list(functional_call(call, {f"model.{name}": tensor for name, tensor in state.items()}, (x,)))
    names = {id(tensor): name for name, tensor in state.items()} | {id(x): "images"}
    return outputs, computation(outputs, names) if grad else ((), frozenset())


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


class _Call(nn.Module):
    def __init__(self, model: nn.Module, read: Read) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return self.read(self.model, x)


def computation(outputs: Iterable[Tensor], names: dict[int, str]) -> Computation:
    """Hashes of the operations that made each output, with their settings, and the named leaves they began with."""
    hashes: dict[Any, int] = {}
    reached: set[str] = set()

    def leaf(node: Any) -> str:
        name = names.get(id(node.variable), "?")
        reached.add(name)
        return name

    def hash_of(root: Any) -> int:
        todo = [root]
        while todo:
            node = todo[-1]
            missing = [child for child, _ in node.next_functions if child is not None and child not in hashes]
            if missing:
                todo += missing
                continue
            todo.pop()
            children = tuple((hashes[child], i) for child, i in node.next_functions if child is not None)
            own = leaf(node) if hasattr(node, "variable") else _settings(node)
            hashes[node] = hash((node.name(), own, children))
        return hashes[root]

    made = tuple(hash(tuple(t.shape)) if t.grad_fn is None else hash_of(t.grad_fn) for t in outputs)
    return made, frozenset(reached)


def _settings(node: Any) -> tuple[str, ...]:
    """What an operation was called with beside tensors."""
    values = ((name, getattr(node, name)) for name in _saved_names(type(node)))
    return tuple(f"{name}={value}" for name, value in values if isinstance(value, int | float | str | bool))


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    """Attributes that are no tensors, as far as their names tell."""
    tensors = ("_saved_self", "_saved_result", "_saved_tensors", "_saved_other", "_saved_weight", "_saved_input")
    return tuple(name for name in dir(kind) if name.startswith("_saved_") and name not in tensors)


def trimmed(model: Module, read: Read, x: Tensor) -> tuple[Module, tuple[str, ...]]:
    """A shared copy of `model` that lacks what `read` does not need, and the names it could not do without.

    These are parameters that no output comes from, but which the model's code insists on. Outputs are those of the
    whole model: the operations that make them are compared.
    """
    whole = shared_copy(model)
    _, made = read_on_meta(whole, read, x, grad=True)
    pieces = list(unreached(whole, made[1]))
    attempt = _replaced(whole, [(piece, next(stand_ins(whole, piece))) for piece in pieces])
    if not _makes(attempt, read, x, made):
        attempt = whole
        for piece in reversed(pieces):
            attempt = _lacking(attempt, piece, lambda model: _makes(model, read, x, made))
    return attempt, tuple(name for name, _ in attempt.named_parameters() if name not in made[1])


def _lacking(model: Module, path: str, same: Callable[[nn.Module], bool]) -> Module:
    """`model` without the module or parameter at `path`, or without as many parts of it as keep it the `same`."""
    for stand_in in stand_ins(model, path):
        attempt = _replaced(model, [(path, stand_in)])
        if same(attempt):
            return attempt
    parent, name = _parent(model, path)
    module = parent._modules.get(name)
    parts = list(unreached(module, frozenset(), f"{path}.")) if module is not None else []
    for part in reversed(parts):
        model = _lacking(model, part, same)
    return model


def _makes(model: nn.Module, read: Read, x: Tensor, expected: Computation) -> bool:
    try:
        _, made = read_on_meta(model, read, x, grad=True)
    except REFUSED:  # it insists on something that is gone
        return False
    return made == expected


def unreached(module: nn.Module, reached: frozenset[str], prefix: str = "") -> Iterator[str]:
    """Paths of the largest parts of `module` that hold parameters, none of which is `reached`."""
    for name, parameter in module._parameters.items():
        if parameter is not None and prefix + name not in reached:
            yield prefix + name
    for name, child in module._modules.items():
        path = prefix + name
        if child is None or next(child.parameters(), None) is None:
            continue
        if any(parameter.startswith(path + ".") for parameter in reached):
            yield from unreached(child, reached, path + ".")
        else:
            yield path


def stand_ins(model: nn.Module, path: str) -> Iterator[nn.Module | None]:
    """What may come in the place of the module or parameter at `path`, the least first; None is nothing."""
    parent, name = _parent(model, path)
    if name in parent._parameters:
        yield None
        return
    module = parent.get_submodule(name)
    if isinstance(module, nn.ModuleList):
        yield nn.ModuleList()
        yield from (nn.ModuleList([PassThrough(module[0], every)]) for every in (False, True))
    elif isinstance(parent, nn.ModuleDict) or (isinstance(parent, nn.ModuleList) and _is_last(parent, name)):
        yield None
    yield PassThrough(module)
    yield PassThrough(module, every=True)


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _replaced(model: Module, pieces: Iterable[tuple[str, nn.Module | None]]) -> Module:
    """A shared copy of `model` with these in the place of what is at the paths."""
    copied = shared_copy(model)
    for path, stand_in in reversed(list(pieces)):
        parent, name = _parent(copied, path)
        if name in parent._parameters:
            parent._parameters[name] = None
        elif stand_in is None:
            del parent._modules[name]
        else:
            parent._modules[name] = stand_in
    return copied


def _is_last(parent: nn.Module, name: str) -> bool:
    """Whether nothing with parameters comes after the child."""
    children = list(parent._modules.items())
    after = children[[key for key, _ in children].index(name) + 1 :]
    return not any(child is not None and next(child.parameters(), None) is not None for _, child in after)
