"""Leave out of a model what some outputs do not depend on, while its own forward stays as it is."""

from collections.abc import Callable, Iterator, Sequence, Set
from itertools import islice
from typing import TypeVar

from torch import Tensor, nn

from .computation import Read, computation_of
from .copies import meta_twin, structural_copy
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


def pruned(model: Module, read: Read, images: Tensor) -> tuple[Module, tuple[str, ...]]:
    """A copy of `model` that shares its tensors and lacks what `read` does not need, and the names it could not lack.

    These are parameters that no output comes from, but which the model's code insists on. Outputs are those of the
    whole model: the operations that make them are compared.
    """
    trial = _Trial(model, read, images)
    reached = {id(parameter) for name, parameter in trial.twin.named_parameters() if name in trial.made.parameters}
    pieces = list(unreached(trial.twin, reached))
    if pieces and not trial.works(pieces) and not trial.works(_innermost(trial.twin, pieces)):
        for piece in reversed(pieces):
            trial.leave_out(piece)
    copied = structural_copy(model)
    for group, number in trial.chosen:
        _replace(copied, group, number)
    return copied, tuple(name for name, _ in copied.named_parameters() if name not in trial.made.parameters)


class _Trial:
    """A copy without values, of which parts are left out as long as it computes the same.

    chosen: the groups of paths that are out, each with the number of the stand-in that is in their place.
    """

    def __init__(self, model: nn.Module, read: Read, images: Tensor) -> None:
        self.twin, self._read, self._images = meta_twin(model), read, images
        self.made = computation_of(self.twin, read, images)
        self.chosen: list[tuple[Sequence[str], int]] = []

    def works(self, paths: Sequence[str], number: int = 0) -> bool:
        """Leave these modules and parameters out, if that changes nothing; whether they are out."""
        undo = _replace(self.twin, paths, number)
        try:
            same = computation_of(self.twin, self._read, self._images) == self.made
        except REFUSED:  # it insists on something that is gone
            same = False
        if same:
            self.chosen.append((paths, number))
        else:
            undo()
        return same

    def leave_out(self, path: str) -> None:
        """Leave a module or parameter out, or as many parts of it as can be."""
        parent, name = _parent(self.twin, path)
        module = parent._modules.get(name)
        if module is None and parent._parameters.get(name) is None:  # of a container that is shared
            return
        if any(self.works([path], number) for number in range(len(list(stand_ins(self.twin, path))))):
            return
        for part in reversed(list(unreached(module, set(), f"{path}.")) if module is not None else []):
            self.leave_out(part)


def _innermost(model: nn.Module, pieces: Sequence[str]) -> list[str]:
    """The pieces that are parameters, and the innermost modules with parameters in those that are modules."""
    found: list[str] = []
    for piece in pieces:
        parent, name = _parent(model, piece)
        module = parent._modules.get(name)
        parts = [] if module is None else module.named_modules(prefix=piece)
        found += [path for path, part in parts if part._parameters] or [piece]
    return found


def unreached(module: nn.Module, reached: Set[int], prefix: str = "") -> Iterator[str]:
    """Paths of the largest parts of `module` that hold parameters, none of which has an id that is `reached`.

    Names do not tell: a module may be registered under several.
    """
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in reached:
            yield prefix + name
    for name, child in module._modules.items():
        own = set() if child is None else {id(parameter) for parameter in child.parameters()}
        if child is not None and own & reached:
            yield from unreached(child, reached, f"{prefix}{name}.")
        elif own:
            yield prefix + name


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


def _replace(model: nn.Module, paths: Sequence[str], number: int) -> Callable[[], None]:
    """Put the stand-in of that number in the place of what is at each path, in place; returns what undoes it."""
    owners = [_parent(model, path)[0] for path in paths]
    before = [(owner, owner._modules.copy(), owner._parameters.copy()) for owner in owners]
    found = [next(islice(stand_ins(model, path), number, None)) for path in paths]
    for path, stand_in in reversed([*zip(paths, found, strict=True)]):
        parent, name = _parent(model, path)
        if name in parent._parameters:
            parent._parameters[name] = None
        elif stand_in is None:
            parent._modules.pop(name, None)  # gone already where containers are shared
        else:
            parent._modules[name] = stand_in

    def undo() -> None:
        for owner, modules, parameters in before:
            owner._modules.clear()
            owner._modules.update(modules)
            owner._parameters.update(parameters)

    return undo


def _is_last(parent: nn.Module, name: str) -> bool:
    """Whether nothing with parameters comes after the child."""
    children = list(parent._modules.items())
    after = children[[key for key, _ in children].index(name) + 1 :]
    return not any(child is not None and next(child.parameters(), None) is not None for _, child in after)
