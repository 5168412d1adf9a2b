"""Leave out of a model what some outputs do not depend on, while its own forward stays as it is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn

from .computation import Computation, Read, computation_of
from .copies import structural_copy
from .module_trace import Call, Run
from .placeholders import LinearPlaceholder, PassThrough, Placeholder
from .third_party_errors import REFUSED

Module = TypeVar("Module", bound=nn.Module)


def unneeded(model: nn.Module, needs: int, bits: dict[str, int], runs: Sequence[Run]) -> list[str]:
    """Paths of the outermost modules and of the parameters that no bit of `needs` stands for, in running order.

    A container that is not called itself is left, because what calls its entries has to find them, and so is a module
    that is called without a tensor, from which the shape of its result would follow.
    """
    blind = {path for run in runs for path, calls in run.calls.items() if any(call.given is None for call in calls)}
    called = dict.fromkeys(path for run in runs for path in run.calls)
    place = {path: i for i, path in enumerate(called)}
    of_module = {id(module): bits[path] for path, module in model.named_modules()}
    of_parameter = {id(parameter): bits[name] for name, parameter in model.named_parameters()}

    def needed(module: nn.Module) -> bool:
        own = [of_module[id(part)] for part in module.modules()]
        return any(bit & needs for bit in [*own, *(of_parameter[id(parameter)] for parameter in module.parameters())])

    def visit(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, parameter in module._parameters.items():
            if parameter is not None and not of_parameter[id(parameter)] & needs:
                yield prefix + name
        for name, child in module.named_children():
            path = prefix + name
            if needed(child) or path in blind or (path not in place and child._modules):
                yield from visit(child, path + ".")
            elif path in place or child._parameters:
                yield path

    return sorted(visit(model, ""), key=lambda path: place.get(path, len(place)))


def skip(model: nn.Module, paths: Sequence[str], runs: Sequence[Run]) -> None:
    """Replace the modules at `paths` in place by ones that compute nothing, and the parameters there by zeros."""
    calls: dict[str, list[Call]] = {}
    for run in runs:
        for path, made in run.calls.items():
            calls.setdefault(path, []).append(made[-1])
    for path in paths:
        owner, _, name = path.rpartition(".")
        parent = model.get_submodule(owner)
        if (module := parent._modules.get(name)) is not None:
            parent._modules[name] = Placeholder(module, calls.get(path, ())).train(parent.training)
            continue
        zeros = parent.get_parameter(name).detach().new_zeros(()).expand(parent.get_parameter(name).shape)
        del parent._parameters[name]
        parent.register_buffer(name, zeros, persistent=False)  # expanded, it takes no memory


def largest(candidates: Sequence[str], works: Callable[[Sequence[str]], bool]) -> list[str]:
    """As many of `candidates` as can be found that together work, trying all of them first, and later ones before."""
    chosen: list[str] = []

    def grow(group: Sequence[str]) -> None:
        if works([*chosen, *group]):
            chosen.extend(group)
        elif len(group) > 1:
            half = len(group) // 2
            grow(group[half:])
            grow(group[:half])

    if candidates:
        grow(candidates)
    return chosen


def pruned(model: Module, read: Read, x: Tensor) -> tuple[Module, tuple[str, ...]]:
    """A shared copy of `model` that lacks what `read` does not need, and the names it could not do without.

    These are parameters that no output comes from, but which the model's code insists on. Outputs are those of the
    whole model: the operations that make them are compared.
    """
    whole = structural_copy(model)
    made = computation_of(whole, read, x)

    def same(model: nn.Module) -> bool:
        return _makes(model, read, x, made)

    pieces = list(unreached(whole, made.parameters))
    attempt = _without(whole, pieces, same) or _without(whole, _innermost(whole, pieces), same)
    if attempt is None:
        attempt = whole
        for piece in reversed(pieces):
            attempt = _lacking(attempt, piece, same)
    return attempt, tuple(name for name, _ in attempt.named_parameters() if name not in made.parameters)


def _without(model: Module, paths: Sequence[str], same: Callable[[nn.Module], bool]) -> Module | None:
    """`model` without all of these modules and parameters; None if there are none, or that changes what it computes."""
    attempt = _replaced(model, [(path, next(stand_ins(model, path))) for path in paths])
    return attempt if paths and same(attempt) else None


def _innermost(model: nn.Module, pieces: Sequence[str]) -> list[str]:
    """The pieces that are parameters, and the innermost modules with parameters in those that are modules."""
    found: list[str] = []
    for piece in pieces:
        parent, name = _parent(model, piece)
        module = parent._modules.get(name)
        inner = (
            [] if module is None else [path for path, part in module.named_modules(prefix=piece) if part._parameters]
        )
        found += inner or [piece]
    return found


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
        return computation_of(model, read, x) == expected
    except REFUSED:  # it insists on something that is gone
        return False


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
    if isinstance(module, nn.Linear):
        yield LinearPlaceholder(module.out_features)
    yield PassThrough(module)
    yield PassThrough(module, every=True)


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _replaced(model: Module, pieces: Iterable[tuple[str, nn.Module | None]]) -> Module:
    """A shared copy of `model` with these in the place of what is at the paths."""
    copied = structural_copy(model)
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
