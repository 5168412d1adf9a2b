"""Models whose modules run one after another: the modules to run, and the maps that they return."""

from collections.abc import Collection, Sequence

import torch.fx
from torch import Tensor, nn

from .errors import ContractError
from .features import FeatureInfo

torch.fx.wrap("require_map")  # symbolic tracers record the call as a whole


def run_steps(
    model: nn.Module, x: Tensor, steps: Sequence[str], levels: Sequence[FeatureInfo], overwritten: Collection[str]
) -> list[Tensor]:
    """Run the modules at `steps` one after another, and return the maps of `levels`, which are in ascending order.

    `overwritten` names levels whose map a later module overwrites in place, and which are therefore copied.
    """
    taps, maps = {level.name for level in levels}, list[Tensor]()
    for step in steps:
        x = model.get_submodule(step)(x)
        if step in taps:
            maps.append(require_map(x, step).clone() if step in overwritten else require_map(x, step))
    return maps


def steps_to(model: nn.Module, levels: Sequence[FeatureInfo]) -> tuple[str, ...]:
    """Paths of the modules to run, in order, up to the deepest level. A container is opened only for a level inside it.

    Raises:
        ContractError: a level is not among the modules, or levels and modules are in different orders.
    """
    names = [level.name for level in levels]
    pending, steps = set(names), list[str]()

    def visit(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            path = prefix + name
            if not pending:
                return
            if any(tap.startswith(path + ".") for tap in pending):
                visit(child, path + ".")
            else:
                steps.append(path)
                pending.discard(path)

    visit(model, "")
    if pending:
        raise ContractError(
            f"feature_info of {type(model).__name__} names {[name for name in names if name in pending]}, which no "
            f"module is called, or which lies inside another level; its children are {[*model._modules]}"
        )
    order = [step for step in steps if step in names]
    if order != names:
        raise ContractError(
            f"feature_info of {type(model).__name__} lists {names}, but its modules are registered in the order "
            f"{order}: register modules and levels in the order they run"
        )
    return tuple(steps)


def require_map(value: object, name: str) -> Tensor:
    """The value itself if it is a map (N, C, H, W). ContractError otherwise."""
    if isinstance(value, Tensor) and value.ndim == 4:
        return value
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ContractError(f"module {name!r} returned {what}, not a map (N, C, H, W): make the model a Pyramid instead")
