"""Cuts a copy of a model of timm down to what the maps asked for need."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import ContractError
from ..wrappers.refusals import REFUSED
from .timm_copies import tried, with_graph, without_values

Undo = Callable[[], None]


@with_graph
def cut(copied: Any, levels: Sequence[int], size: Sequence[int], on_meta: bool) -> None:
    """Take everything out of the copy, in place, that the maps of `levels`, which ascend, do not need.

    timm's own pruning ends the model at the deepest level. What it leaves, such as the branches of an HRNet that lead
    to no map asked for, is found on the meta device, if the model runs there: parameters that no map depends on.
    """
    copied.prune_intermediate_layers(list(levels), prune_norm=True, prune_head=True)
    if on_meta:
        for path in dispensable(without_values(copied), levels, size):
            _take_out(copied, path)


@dataclass(frozen=True, slots=True)
class Needs:
    """Shapes of the maps, and the parameters that they depend on."""

    shapes: list[tuple[int, ...]]
    parameters: frozenset[str]


def dispensable(twin: nn.Module, levels: Sequence[int], size: Sequence[int]) -> list[str]:
    """Paths of the modules and parameters without which the maps depend on the same parameters as before.

    They are taken out of `twin`, a copy on the meta device.
    """
    needs = _needs(twin, levels, size)
    unneeded = {name for name, _ in twin.named_parameters()} - needs.parameters
    whole = sorted(_outermost(twin, unneeded))
    parts = sorted({name.rpartition(".")[0] or name for path in whole for name in unneeded if _inside(name, path)})
    for paths in (whole, parts):
        if _runs_without(twin, paths, needs, levels, size):
            return paths
    return [path for path in whole if _runs_without(twin, [path], needs, levels, size)]


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _needs(twin: nn.Module, levels: Sequence[int], size: Sequence[int]) -> Needs:
    maps = tried(twin, size, levels)
    steps, seen, reached = [map_.grad_fn for map_ in maps], set(), set()
    while steps:
        step = steps.pop()
        if step is not None and step not in seen:
            seen.add(step)
            reached.add(id(getattr(step, "variable", None)))
            steps += [before for before, _ in step.next_functions]
    names = (name for name, parameter in twin.named_parameters() if id(parameter) in reached)
    return Needs([tuple(map_.shape) for map_ in maps], frozenset(names))


def _outermost(module: nn.Module, names: set[str], prefix: str = "") -> Iterator[str]:
    """The outermost modules all of whose parameters are among `names`, and the parameters left over."""
    for child, held in module.named_children():
        path = prefix + child
        of_child = {f"{path}.{name}" for name, _ in held.named_parameters()}
        if of_child and of_child <= names:
            yield path
        elif of_child & names:
            yield from _outermost(held, names, f"{path}.")
    yield from (prefix + name for name, _ in module.named_parameters(recurse=False) if prefix + name in names)


def _runs_without(
    twin: nn.Module, paths: Sequence[str], needs: Needs, levels: Sequence[int], size: Sequence[int]
) -> bool:
    undo = [_take_out(twin, path) for path in paths]
    try:
        same = _needs(twin, levels, size) == needs
    except REFUSED:
        same = False
    if not same:
        for put_back in reversed(undo):
            put_back()
    return same


def _take_out(root: nn.Module, path: str) -> Undo:
    """Replace the module or parameter at `path` by one without parameters, in place; returns how to undo it."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    registry: dict[str, Any] = owner._modules if name in owner._modules else owner._parameters
    before = registry[name]
    registry[name] = _stand_in(before) if isinstance(before, nn.Module) else None

    def put_back() -> None:
        registry[name] = before

    return put_back


class Blank(nn.Module):
    """Zeros of the shape that a linear layer would return: (..., in) to (..., chs)."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.chs = chs

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise ContractError(f"a linear layer was called with a {type(x).__name__}, not with a tensor")
        return x.new_zeros(*x.shape[:-1], self.chs)


def _stand_in(module: nn.Module) -> nn.Module:
    """Something without parameters that can be called in the place of `module`."""
    if isinstance(module, nn.Linear):
        return Blank(module.out_features)
    if isinstance(module, nn.ModuleList):  # what loops over it takes what the first entry returns
        return nn.ModuleList([nn.Identity()])
    return nn.Identity()
